"""Labels that documents give to their tokens, and which tokens are kept by them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg.errors import ConfregError
from confreg.tokens.records import Cell, Placed

if TYPE_CHECKING:
    from confreg.tokens.table import TokenTable

_NAME = re.compile(r"[A-Za-z_]\w*")
TAKEN = (
    "token", "sequence", "position", "token_id", "token_text", "next_token_id", "keep", "document",
    "role", "target_index", "neuron", "layer", "index", "effect", "quantity", "pathway", "set",
    "head", "group", "sample",
)  # fmt: skip
"""Names that labels of a dataset have already."""
RULES = ("usual", "all", "last", "target")


def columns_of(
    placed: Sequence[Placed], names: Sequence[str], document: np.ndarray
) -> dict[str, np.ndarray]:
    """Fields of documents as labels of their tokens.

    Parameters
    ----------
    placed
        The documents' records, and where they stand.
    names
        The fields.
    document
        Which document a token is in, (T,).

    Raises
    ------
    ConfregError
        A document has no such field, its value is no single one, or the name is taken.
    """
    found = {}
    for name in names:
        if not _NAME.fullmatch(name) or name in TAKEN:
            raise ConfregError(
                f"The column {name!r} cannot be a label of tokens: give it another name, of "
                f"letters, digits and _, that is none of {', '.join(TAKEN)}."
            )
        values = []
        for where, record in placed:
            if name not in record:
                has = ", ".join(map(repr, record)) or "nothing"
                raise ConfregError(
                    f"{where[0].upper()}{where[1:]} has no column {name!r}: it has {has}."
                )
            values.append(_scalar(where, name, record[name]))
        found[name] = _array(values)[document]
    return found


def _scalar(where: str, name: str, value: Any) -> Any:
    value = value.item() if hasattr(value, "item") and not isinstance(value, str) else value
    if value is None or isinstance(value, str | int | float):
        return value
    raise ConfregError(
        f"{where[0].upper()}{where[1:]}: the column {name!r} holds a value of type "
        f"{type(value).__name__}; a label is text, a number, or true or false."
    )


def _array(values: list[Any]) -> np.ndarray:
    """Numbers as numbers, what is missing as NaN or as empty text."""
    if all(isinstance(each, Cell) for each in values):
        values = _numbers(values)
    known = [each for each in values if each is not None]
    if known and all(isinstance(each, bool) for each in known) and len(known) == len(values):
        return np.array(values, dtype=bool)
    if known and all(isinstance(each, int | float) for each in known):
        whole = all(isinstance(each, int) for each in known) and len(known) == len(values)
        fits = whole and all(abs(each) < 2**63 for each in known)
        filled = [np.nan if each is None else each for each in values]
        return np.array(filled, dtype=np.int64 if fits else np.float64)
    texts = np.empty(len(values), dtype=object)
    texts[:] = ["" if each is None else str(each) for each in values]
    return texts


def _numbers(cells: list[Any]) -> list[Any]:
    """Cells of a table without types, as numbers if all that are not empty are."""
    for kind in (int, float):
        try:
            found = [kind(each) if each.strip() else None for each in cells]
        except ValueError:
            continue
        return found if any(each is not None for each in found) else cells
    return cells


def kept(table: TokenTable, rules: Sequence[str]) -> TokenTable:
    """The table with other tokens kept.

    Parameters
    ----------
    table
    rules
        All must hold: ``usual`` (as the table has it), ``all``, ``last`` (the last position of a
        prompt, or of a sequence of running text), ``target`` (positions whose next token is of a
        target), ``role:NAME``, ``COLUMN=VALUE``. Where only roles and columns are named, they
        narrow what is usual: at roles that of running text.

    Raises
    ------
    ConfregError
        There is no such rule, role, column or value, or no token is left.
    """
    keep = np.ones(len(table), dtype=bool)
    if not any(rule in RULES for rule in rules):
        by_role = any(rule.startswith("role:") for rule in rules)
        keep = table.running if by_role and table.running is not None else table.keep
    for rule in rules:
        keep = keep & _holds(table, rule)
    if not keep.any():
        raise ConfregError(f"No token of this text is kept by --keep {' '.join(rules)}.")
    return replace(table, keep=keep)


def _holds(table: TokenTable, rule: str) -> np.ndarray:
    if rule == "usual":
        return table.keep
    if rule == "all":
        return np.ones(len(table), dtype=bool)
    if rule == "last":
        if table.ends is not None:
            return table.ends
        return np.append(table.sequence[1:] != table.sequence[:-1], True)
    if rule == "target":
        if "target_index" not in table.marks:
            raise ConfregError("--keep target: the documents have no target.")
        return table.marks["target_index"] >= 0
    name, colon, value = rule.partition(":")
    if name == "role" and colon:
        return _equal(table, "role", value)
    name, equals, value = rule.partition("=")
    if not equals:
        raise ConfregError(
            f"--keep takes {', '.join(RULES)}, role:NAME or COLUMN=VALUE, not {rule!r}."
        )
    return _equal(table, name, value)


def _equal(table: TokenTable, name: str, value: str) -> np.ndarray:
    if name not in table.marks:
        has = ", ".join(table.marks) or "none"
        hint = "documents without messages" if name == "role" else "name it in --columns"
        raise ConfregError(
            f"--keep: the tokens have no label {name!r} ({hint}); of the documents they have {has}."
        )
    values = table.marks[name]
    found = _same(values, value)
    if not found.any():
        some = ", ".join(map(str, np.unique(values.astype(str))[:12]))
        raise ConfregError(f"--keep: no token has {name} {value!r}; there are {some}.")
    return found


def _same(values: np.ndarray, value: str) -> np.ndarray:
    if values.dtype.kind in "if":
        try:
            return values == float(value)
        except ValueError:
            return np.zeros(len(values), dtype=bool)
    if values.dtype.kind == "b":
        return values == (value.lower() in ("true", "1"))
    return values == value


def said(marks: Mapping[str, np.ndarray]) -> bytes:
    """The labels as bytes, for a hash."""
    return b"\0".join(
        name.encode() + b"\0" + "\0".join(map(str, mark.tolist())).encode()
        for name, mark in sorted(marks.items())
    )
