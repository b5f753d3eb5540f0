"""Where text comes from: files, folders, globs, the Hub, or strings in memory."""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from confreg.errors import ConfregError

TEXT_SUFFIXES = (".txt", ".md", ".jsonl")


@dataclass(frozen=True)
class Corpus:
    """Some documents, read only when they are asked for.

    Attributes
    ----------
    name
        A short description, stored with the results.
    """

    name: str
    _open: Callable[[], Iterator[str]]

    def documents(self) -> Iterator[str]:
        """Iterate over the documents, each a string, from the first; may be called again."""
        return self._open()


def read(text: str | Path | Corpus | Iterable[str] | Iterable[Path] | None = None) -> Corpus:
    """Turn what a user may call "text" into a corpus.

    Parameters
    ----------
    text
        * nothing: the English help topics that every Python ships, ``pydoc_data.topics``;
        * a string, a path or a list of paths: sources, see :func:`read_sources`;
        * a list of strings: the documents themselves.

    Raises
    ------
    ConfregError
        If a source does not exist, or the list is empty or mixes strings and paths.
    """
    if text is None:
        return _help_topics()
    if isinstance(text, Corpus):
        return text
    if isinstance(text, str | Path):
        return read_sources([str(text)])
    if not isinstance(text, Iterable):
        raise ConfregError(
            f"text is {text!r}, of type {type(text).__name__}: give a path, a list of paths, "
            "or a list of strings, which are then the documents."
        )
    items = list(text)
    if not items:
        raise ConfregError(
            "text is an empty list: give at least one document or path, or leave text out "
            "for the default corpus."
        )
    if all(isinstance(item, str) for item in items):
        return _given([str(item) for item in items])
    if all(isinstance(item, Path) for item in items):
        return read_sources([str(item) for item in items])
    kinds = ", ".join(sorted({type(item).__name__ for item in items}))
    raise ConfregError(
        f"text is a list of {kinds}: give a list of strings (documents) or a list of "
        "pathlib.Path (files and folders), not other things and not both."
    )


def read_sources(sources: Sequence[str]) -> Corpus:
    """Read files, folders, globs and Hub datasets, one after the other.

    A file is one document, or one per line if its name ends in ``.jsonl`` (the line's
    field ``text``). A folder stands for the ``.txt``, ``.md`` and ``.jsonl`` files in it
    and below, hidden ones left out, in sorted order. ``hf:dataset[/config][:split][#column]``
    is streamed from the Hugging Face Hub and needs ``pip install "confreg[hf]"``.

    Raises
    ------
    ConfregError
        If a source names nothing that exists. What is inside a source is only looked at,
        and complained about, when its documents are read.
    """
    if not sources:
        raise ConfregError("No text was given: name a file, a folder, a glob or hf:dataset.")
    parts = [_source(source) for source in sources]
    if len(parts) == 1:
        return parts[0]
    return Corpus(
        name=" + ".join(part.name for part in parts),
        _open=lambda: (document for part in parts for document in part.documents()),
    )


def _source(source: str) -> Corpus:
    if source.startswith("hf:"):
        from confreg.tokens import hub

        return Corpus(source, hub.opener(source))
    path = Path(source).expanduser()
    if _exists(path):
        files = _files_below(path) if path.is_dir() else [path]
    elif glob.has_magic(source):
        found = glob.glob(str(path), recursive=True)
        files = sorted(Path(name) for name in found if Path(name).is_file())
        if not files:
            raise ConfregError(f"The pattern {source!r} matches no file.")
    else:
        shown = source if len(source) <= 100 else source[:100] + "…"
        raise ConfregError(
            f"There is no file or folder {shown!r}. (In Python, text itself is given as a "
            "list of strings.)"
        )
    return Corpus(source, lambda: (text for file in files for text in _documents_of(file)))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a sentence given as a path: too long, or with a NUL
        return False


def _files_below(folder: Path) -> list[Path]:
    found = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in TEXT_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )
    if not found:
        raise ConfregError(
            f"The folder {str(folder)!r} holds no {', '.join(TEXT_SUFFIXES[:-1])} or "
            f"{TEXT_SUFFIXES[-1]} file: name the files themselves, or a pattern such as "
            f"{str(folder / '*.rst')!r}."
        )
    return found


def _documents_of(file: Path) -> Iterator[str]:
    try:
        # utf-8-sig: a byte order mark is no text.
        with file.open(encoding="utf-8-sig") as stream:
            if file.suffix.lower() == ".jsonl":
                yield from _json_lines(file, stream)
            else:
                yield stream.read()
    except UnicodeDecodeError as error:
        raise ConfregError(
            f"{str(file)!r} is not UTF-8 text ({error.reason}): convert it, or leave it out."
        ) from error
    except OSError as error:
        raise ConfregError(f"{str(file)!r} cannot be read: {error.strerror or error}.") from error


def _json_lines(file: Path, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ConfregError(
                f"Line {number} of {str(file)!r} is not a JSON object with a field 'text'."
            ) from error
        if not isinstance(text, str):
            raise ConfregError(
                f"Line {number} of {str(file)!r}: the field 'text' is of type "
                f"{type(text).__name__}, not a string."
            )
        yield text


def _given(documents: list[str]) -> Corpus:
    count = len(documents)
    name = f"{count} given document{'s' if count > 1 else ''}"
    return Corpus(name, lambda: iter(documents))


def _help_topics() -> Corpus:
    def documents() -> Iterator[str]:
        try:
            from pydoc_data.topics import topics
        except ImportError as error:
            raise ConfregError(
                "This Python comes without its help topics (pydoc_data.topics), the default "
                "corpus: name another text."
            ) from error
        return iter(topics.values())

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Corpus(f"help topics of Python {version} (pydoc_data.topics)", documents)
