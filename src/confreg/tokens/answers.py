"""What answers prompts, as measures need it: sums along targets, contrasts, accepted tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from confreg.errors import ConfregError
from confreg.tokens.table import Answer, TokenTable

if TYPE_CHECKING:
    import torch

    from confreg.effects import Tokens

NEEDS = {
    "target": "prompts with a target",
    "contrast": "prompts with a target and a contrast",
    "contrast_whole": "prompts with a target and a contrast",
}
"""What a measure can run along, and the documents that have it."""


def has(table: TokenTable, along: str) -> bool:
    """Whether any document of a text has what a measure runs along.

    Raises
    ------
    ConfregError
        Nothing of that name is known.
    """
    if along not in NEEDS:
        raise ConfregError(f"A measure runs along {', '.join(NEEDS)}, not along {along!r}.")
    return any(_is_there(answer, along) for answer in table.answers)


def _is_there(answer: Answer, along: str) -> bool:
    return bool(answer.targets) and (along == "target" or bool(answer.contrast))


def accepted(table: TokenTable, start: int, stop: int) -> np.ndarray | None:
    """Which tokens are a right prediction at tokens ``start`` to ``stop``, (T, A) int64.

    The next one, and where answers begin also the first token of each that is accepted; -1 where
    there are fewer. None where nothing but the next one is right.
    """
    found: dict[int, list[int]] = {}
    for answer in _within(table.answers, start, stop):
        first = list(dict.fromkeys(target[0] for target in answer.targets))
        if len(first) > 1:
            found[answer.token - start] = first
    if not found:
        return None
    out = np.full((stop - start, max(map(len, found.values()))), -1, dtype=np.int64)
    out[:, 0] = table.next_token_id[start:stop]
    for row, first in found.items():
        out[row, : len(first)] = first
    return out


def answered(text: Tokens, table: TokenTable, start: int, names: Iterable[str]) -> Tokens:
    """A block of tokens with what measures that run along answers read beside it.

    A contrast's first token is predicted where the target's is: that position is there twice, with
    either to follow. A whole contrast is read behind its prompt in a row of its own. These entries
    come after the block's own and are no tokens of the dataset.

    Parameters
    ----------
    text
        The block of the tokens from ``start`` on, see `confreg.tokens.axis.token_block`.
    table
        The table that it is of.
    names
        What is run along, see `NEEDS`.
    """
    import torch

    from confreg.effects import Along, Tokens

    own, length = len(text), text.inputs.shape[1]
    answers = _within(table.answers, start, start + own)
    rows: list[np.ndarray] = []
    places: list[tuple[int, int]] = []  # row and column
    targets: list[int] = []
    sums: dict[str, list[tuple[int, int, float]]] = {}  # entry, owner, weight
    for name in names:
        sums[name] = []
        sign = 1.0 if name == "target" else -1.0  # log p is less the loss
        for answer in (each for each in answers if _is_there(each, name)):
            at = answer.token - start
            count = 1 if name == "contrast" else len(answer.targets[0])
            sums[name] += [(at + k, at, sign) for k in range(count)]
            if name == "target":
                continue
            row, column = divmod(int(text.positions[at]), length)
            read = answer.contrast[:1]
            if name == "contrast_whole":
                read, row = answer.contrast, len(text.inputs) + len(rows)
                before = table.sequences[table.sequence[answer.token]][: column + 1]
                rows.append(np.append(before, read[:-1]))
            for k, token in enumerate(read):
                sums[name].append((own + len(places), at, 1.0))
                places.append((row, column + k))
                targets.append(token)
    inputs = _with_rows(text.inputs.numpy(), rows)
    positions = text.positions // length * inputs.shape[1] + text.positions % length
    extra = torch.tensor([row * inputs.shape[1] + column for row, column in places]).long()
    none = torch.zeros(len(extra), dtype=torch.bool)
    found = Tokens(
        torch.from_numpy(inputs),
        torch.cat([positions, extra]),
        torch.cat([text.targets, torch.tensor(targets).long()]),
        torch.cat([text.keep, none]),
        None if text.wanted is None else torch.cat([text.wanted, none]),
        own=own,
        accepted=_padded(text.accepted, targets),
    )
    for name, entries in sums.items():
        owner = torch.full((len(found),), -1)
        weight = torch.zeros(len(found))
        for entry, at, sign in entries:
            owner[entry], weight[entry] = at, sign
        found.along[name] = Along(owner, weight)
    return found


def _within(answers: Sequence[Answer], start: int, stop: int) -> list[Answer]:
    return [answer for answer in answers if start <= answer.token < stop]


def _with_rows(inputs: np.ndarray, rows: list[np.ndarray]) -> np.ndarray:
    out = np.zeros(
        (len(inputs) + len(rows), max([inputs.shape[1], *map(len, rows)])), dtype=np.int64
    )
    out[: len(inputs), : inputs.shape[1]] = inputs
    for row, ids in zip(out[len(inputs) :], rows):
        row[: len(ids)] = ids
    return out


def _padded(accepted: torch.Tensor | None, targets: list[int]) -> torch.Tensor | None:
    """Accepted tokens with those of further entries, of which each has one."""
    import torch

    if accepted is None:
        return None
    rest = torch.full((len(targets), accepted.shape[1]), -1)
    rest[:, 0] = torch.tensor(targets).long()
    return torch.cat([accepted, rest])
