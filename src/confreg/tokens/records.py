"""Files as records: plain text, JSON and tables, each also compressed.

A record is a document with what its file says of it: ``{"text": ..., "category": ...}``. A file
of plain text is one record. Where a record stands ("line 3 of 'a.jsonl'") goes with it, so that
what is wrong with it can be said.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from confreg.errors import ConfregError

Record = Mapping[str, Any]
Placed = tuple[str, Record]
"""Where a record stands, and the record."""


class Cell(str):
    """A field of a table without types: text that may stand for a number."""


PLAIN = (".txt", ".md")
PACKED = (".gz", ".zst")
_REFUSED = {
    **dict.fromkeys(
        (".zip", ".tar", ".bz2", ".xz", ".7z", ".tgz"), "unpack it, or use .gz or .zst"
    ),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save it as .csv"),
    **dict.fromkeys((".pdf", ".docx", ".doc", ".odt", ".epub"), "convert it to .txt"),
    **dict.fromkeys((".npy", ".npz", ".pt", ".safetensors", ".pkl"), "that holds no text"),
    ".arrow": "save it as .parquet",
}


def suffix(file: Path) -> str:
    """What a file holds by its name, packed or not: ``".csv"`` of ``a.csv.gz``."""
    suffixes = [each.lower() for each in file.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_known(file: Path) -> bool:
    """Whether a folder's file is taken for text: by its name."""
    return suffix(file) in (*PLAIN, *_READERS)


def of_file(file: Path) -> Iterator[Placed]:
    """The records of a file, read as they are asked for.

    ``.jsonl`` (one object a line), ``.json`` (a list of objects, or one), ``.csv`` and ``.tsv``
    (with a first line of names) and ``.parquet``; any other file is one record of plain text. Each
    may be packed, ``.gz`` or ``.zst``.

    Raises
    ------
    ConfregError
        It cannot be read, is not what its name says, or is of a kind that holds no text.
    """
    kind = suffix(file)
    if kind in _REFUSED:
        raise ConfregError(f"{str(file)!r} is no text that confreg reads: {_REFUSED[kind]}.")
    try:
        with _opened(file) as stream:
            yield from _READERS.get(kind, _plain)(file, stream)
    except UnicodeDecodeError as error:
        raise ConfregError(
            f"{str(file)!r} is not UTF-8 text ({error.reason}): convert it, or leave it out."
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        said = getattr(error, "strerror", None) or error
        raise ConfregError(f"{str(file)!r} cannot be read: {said}.") from error


def of_items(items: Iterable[Record], what: str = "given") -> Iterator[Placed]:
    """Records that are in memory already."""
    for number, item in enumerate(items, start=1):
        yield f"{what} document {number}", item


def text_of(where: str, record: Record, field: str = "text") -> str:
    """The text of a record.

    Raises
    ------
    ConfregError
        It has none, or one that is no text.
    """
    if field not in record:
        known = ", ".join(map(repr, record)) or "nothing"
        raise ConfregError(f"{_capital(where)} has no field {field!r}: it has {known}.")
    text = record[field]
    if not isinstance(text, str):
        raise ConfregError(
            f"{_capital(where)}: {field!r} is of type {type(text).__name__}, not a string."
        )
    return checked(where, text)


def checked(where: str, text: str) -> str:
    """A text with one kind of line break, as a file that is opened as text has.

    Raises
    ------
    ConfregError
        Half of a surrogate pair stands in it, which is no character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfregError(
            f"{_capital(where)} has half of a surrogate pair at character {error.start}, which is "
            "no character: mend or remove it."
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _capital(where: str) -> str:
    return where[0].upper() + where[1:]


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    packing = file.suffix.lower()
    if packing == ".gz":
        with gzip.open(file) as stream:
            yield stream  # type: ignore[misc]
    elif packing == ".zst":
        import zstandard

        try:
            with zstandard.open(file, "rb") as stream:
                yield stream  # type: ignore[misc]
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from error
    else:
        with file.open("rb") as stream:
            yield stream


def _text(stream: IO[bytes], newline: str | None = None) -> io.TextIOWrapper:
    # utf-8-sig: a byte order mark is no text.
    return io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline)


def _plain(file: Path, stream: IO[bytes]) -> Iterator[Placed]:
    yield repr(str(file)), {"text": _text(stream).read()}


def _json_lines(file: Path, stream: IO[bytes]) -> Iterator[Placed]:
    for number, line in enumerate(_text(stream), start=1):
        if line.strip():
            where = f"line {number} of {str(file)!r}"
            yield where, _object(where, parsed(where, line))


def _json(file: Path, stream: IO[bytes]) -> Iterator[Placed]:
    where = repr(str(file))
    found = parsed(where, _text(stream).read())
    for number, item in enumerate(found if isinstance(found, list) else [found], start=1):
        at = f"object {number} of {where}"
        yield at, _object(at, item)


def parsed(where: str, text: str) -> Any:
    """What a piece of JSON says.

    Raises
    ------
    ConfregError
        It is none, or one too deep or with numbers too long for Python.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        said = getattr(error, "msg", None) or error
        raise ConfregError(f"{_capital(where)} is no JSON that can be read: {said}.") from error


def _object(where: str, item: Any) -> Record:
    if not isinstance(item, dict):
        raise ConfregError(
            f"{_capital(where)} is no JSON object with a field 'text', but of type "
            f"{type(item).__name__}."
        )
    return item


def _separated(by: str) -> Callable[[Path, IO[bytes]], Iterator[Placed]]:
    def read(file: Path, stream: IO[bytes]) -> Iterator[Placed]:
        csv.field_size_limit(2**31 - 1)
        lines = csv.DictReader(_text(stream, newline=""), delimiter=by, restkey=None)
        for row in lines:
            where = f"line {lines.line_num} of {str(file)!r}"
            if None in row or None in row.values():
                raise ConfregError(
                    f"{_capital(where)} has not as many fields as the first line has names, "
                    f"{len(lines.fieldnames or [])}."
                )
            yield where, {name: Cell(value) for name, value in row.items()}

    return read


def _parquet(file: Path, stream: IO[bytes]) -> Iterator[Placed]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ConfregError("Parquet files need pyarrow: pip install pyarrow.") from error
    try:
        table = parquet.ParquetFile(io.BytesIO(stream.read()))
        number = 0
        for batch in table.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"row {number} of {str(file)!r}", row
    except ArrowException as error:
        raise ConfregError(
            f"{str(file)!r} is no Parquet file that can be read: {error}."
        ) from error


_READERS: dict[str, Callable[[Path, IO[bytes]], Iterator[Placed]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
}
