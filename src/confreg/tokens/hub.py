"""Text streamed from the Hugging Face Hub, through the optional package ``datasets``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple, cast

from confreg.errors import ConfregError
from confreg.tokens.documents import kind_of
from confreg.tokens.records import Placed

FORM = "hf:dataset[/config][:split][#column]"
_PATTERN = re.compile(
    r"hf:(?P<path>[\w.-]+(?:/[\w.-]+){0,2})(?::(?P<split>[\w.-]+))?(?:#(?P<column>.+))?"
)


class Spec(NamedTuple):
    """The parts of ``hf:dataset[/config][:split][#column]``.

    ``candidates`` are the (dataset, config) pairs that the path may mean, likeliest first:
    ``a/b`` is the dataset ``b`` of the user ``a``, or else the configuration ``b`` of a
    dataset ``a`` that belongs to no one.
    """

    candidates: list[tuple[str, str | None]]
    split: str | None
    column: str | None


def parse(source: str) -> Spec:
    """Split a source into dataset, configuration, split and column.

    Raises
    ------
    ConfregError
        If it is not of the form ``hf:dataset[/config][:split][#column]``.
    """
    match = _PATTERN.fullmatch(source)
    if match is None:
        raise ConfregError(
            f"{source!r} does not read as {FORM}, for example "
            "'hf:Salesforce/wikitext/wikitext-2-raw-v1:test#text'."
        )
    parts = match["path"].split("/")
    candidates: list[tuple[str, str | None]] = {
        1: lambda: [(parts[0], None)],
        2: lambda: [("/".join(parts), None), (parts[0], parts[1])],
        3: lambda: [("/".join(parts[:2]), parts[2])],
    }[len(parts)]()
    return Spec(candidates, match["split"], match["column"])


def opener(source: str) -> Callable[[], Iterator[Placed]]:
    """Return a function that streams the column's strings; nothing is fetched before.

    Raises
    ------
    ConfregError
        Here, if the source does not parse or ``datasets`` is not installed; when read, if
        the Hub cannot be reached or has no such dataset, configuration, split or column.
    """
    spec = parse(source)
    if find_spec("datasets") is None:
        raise ConfregError(
            f"{source!r} needs the package datasets, which is not installed: pip install datasets."
        )
    return lambda: _stream(source, spec)


def _stream(source: str, spec: Spec) -> Iterator[Placed]:
    splits = _load(source, spec)
    split = _choose_split(source, spec.split, list(splits))
    rows = iter(splits[split])
    try:
        first = next(rows)
    except StopIteration:
        return
    except Exception as error:
        raise _unreadable(source, error) from error
    place = _placing(source, spec.column, first)
    yield place(1, first)
    for number in itertools.count(2):
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise _unreadable(source, error) from error
        yield place(number, row)


def _placing(source: str, wanted: str | None, row: Mapping[str, Any]) -> Callable[..., Placed]:
    """How rows like one become records: prompts and chats as they are, else by a column's text."""
    if wanted is None and kind_of(row) != "text":
        return lambda number, row: (f"row {number} of {source!r}", row)
    column = _choose_column(source, wanted, row)

    def place(number: int, row: Mapping[str, Any]) -> Placed:
        return f"row {number} of {source!r}", {**row, "text": _text(source, column, row)}

    return place


def _load(source: str, spec: Spec) -> Mapping[str, Any]:
    """Open the dataset by the first reading of its name that the Hub knows."""
    import datasets  # pyright: ignore[reportMissingImports]
    from datasets.exceptions import DatasetNotFoundError  # pyright: ignore[reportMissingImports]

    missing: Exception | None = None
    for name, config in spec.candidates:
        try:
            return cast("Mapping[str, Any]", datasets.load_dataset(name, config, streaming=True))
        except DatasetNotFoundError as error:
            missing = missing or error
        except Exception as error:  # datasets raises a dozen types, few of its own
            raise _unreadable(source, error) from error
    raise ConfregError(
        f"{source!r}: the Hub has no such dataset, or it is private or gated."
    ) from missing


def _choose_split(source: str, wanted: str | None, found: list[str]) -> str:
    if wanted is None:
        return "train" if "train" in found else found[0]
    if wanted not in found:
        raise ConfregError(f"{source!r}: no split {wanted!r}; there are {', '.join(found)}.")
    return wanted


def _choose_column(source: str, wanted: str | None, row: Mapping[str, Any]) -> str:
    if wanted is not None:
        if wanted not in row:
            raise ConfregError(f"{source!r}: no column {wanted!r}; there are {', '.join(row)}.")
        return wanted
    if "text" in row:
        return "text"
    strings = [name for name, value in row.items() if isinstance(value, str)]
    if len(strings) != 1:
        raise ConfregError(f"{source!r}: no column 'text'; name one of {', '.join(row)} after a #.")
    return strings[0]


def _text(source: str, column: str, row: Mapping[str, Any]) -> str:
    value = row[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfregError(
            f"{source!r}: column {column!r} holds {type(value).__name__}, not text; there are "
            f"{', '.join(row)}."
        )
    return value


def _unreadable(source: str, error: Exception) -> ConfregError:
    reason = " ".join(str(error).split())[:300].rstrip(". ") or type(error).__name__
    if _is_offline(error):
        return ConfregError(
            f"{source!r}: the Hugging Face Hub cannot be reached ({reason}). Without a network, "
            "give files or a folder."
        )
    return ConfregError(f"{source!r} cannot be read: {reason}.")


def _is_offline(error: BaseException | None) -> bool:
    """Whether a failed connection is anywhere in the chain of causes."""
    while error is not None:
        name = type(error).__name__
        if isinstance(error, ConnectionError | TimeoutError) or name in (
            "ConnectError", "ConnectTimeout", "OfflineModeIsEnabled", "LocalEntryNotFoundError",
            "ProxyError",
        ):  # fmt: skip
            return True
        error = error.__cause__ or error.__context__
    return False
