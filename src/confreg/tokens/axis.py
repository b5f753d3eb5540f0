"""A table of tokens as an axis, and a span of it as what travels to the model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from confreg.axes import Axis, Label
from confreg.errors import ConfregError
from confreg.tokens.answers import accepted
from confreg.tokens.table import TokenTable

if TYPE_CHECKING:
    from confreg.effects import Tokens
    from confreg.tokens.groups import Groups

_MARKS = {
    "occurrence": "occurrence of the text: 0 first, 1 second, -1 none",
    "aligned": "position in the occurrence, -1 if in none",
    "matched": "whether the text goes on alike after both occurrences",
    "compared": "whether means over an occurrence include the token",
    "document": "document that the token is in, counted from 0",
    "role": "whose message the token is of",
    "target_index": "which token of the target comes next, -1 if none",
}


@dataclass(frozen=True, eq=False)
class Text(Axis):
    """The axis ``token``: every token of the text, sequence after sequence.

    Attributes
    ----------
    table : TokenTable
    singly : bool
        Whether every kept token is run in a copy of its sequence of its own, see `one_by_one`.
    groups : Groups or None
        Of kept tokens, where ``--by`` asks for them.
    """

    table: TokenTable = field(default=None)  # type: ignore[assignment]
    singly: bool = False
    groups: Groups | None = None

    def one_by_one(self) -> Text:
        """The same tokens, each kept one run in a copy of its sequence of its own.

        So an edit can be made at the measured token only: what it does at one token is not seen
        from the next. Effects are wanted at kept tokens alone, since each costs a pass.
        """
        if self.together is not None:
            raise ConfregError(
                "Beyond a length this model scales its positions by how long a sequence is, so a "
                "token in a shorter copy of its sequence would be another one. Set "
                "--sequence-length so that all sequences are below that length."
            )
        table = replace(self.table, wanted=self.keep)
        # A unit has its kept tokens, and those before them for nothing.
        group = np.cumsum(self.keep) - self.keep
        return replace(
            self,
            entries=lambda start, stop: token_block(table, start, stop, singly=True),
            whole=group,
            table=table,
            singly=True,
        )

    def at_kept(self) -> Text:
        """The same tokens, with effects wanted at kept ones only; they are NaN at others.

        For recipes that read nothing else off them: of a prompt with a target one token is kept.
        """
        table = replace(self.table, wanted=self.keep)
        return replace(
            self, entries=lambda start, stop: token_block(table, start, stop), table=table
        )

    @property
    def keep(self) -> np.ndarray:
        """Tokens over which reductions run, (T,) bool."""
        return self.table.keep

    def over(self, which: Literal["all", "kept", "first"] | str) -> np.ndarray:
        """Tokens that a mean is over, (T,) bool: all, kept ones, or compared first occurrences.

        Raises
        ------
        ConfregError
            There is no such choice, or the text is not repeated.
        """
        if which == "all":
            return np.ones_like(self.keep)
        if which == "kept":
            return self.keep
        if which == "first" and "compared" in self.table.marks:
            return self.table.marks["compared"] & (self.table.marks["occurrence"] == 0)
        raise ConfregError(f"A mean over {which!r} tokens of this text is not possible.")

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return max(map(len, self.table.sequences))


def text_axis(table: TokenTable, name: str = "token") -> Text:
    """The axis of a table; of another ``name``, without the tokens' labels."""
    labels = {
        "token": Label(np.arange(len(table)), "token, counted over all sequences"),
        "sequence": Label(table.sequence.astype(np.int32), "sequence that the token is in"),
        "position": Label(table.position.astype(np.int32), "position of the token in its sequence"),
        "token_id": Label(table.token_id, "vocabulary index of the token"),
        "token_text": Label(table.text, "text of the token"),
        "next_token_id": Label(
            table.next_token_id, "vocabulary index of the next token, -1 if none"
        ),
        "keep": Label(table.keep, "whether reductions over tokens include the token"),
    }
    for mark, values in table.marks.items():
        narrow = mark in _MARKS and values.dtype.kind == "i"
        labels[mark] = Label(
            values.astype(np.int32) if narrow else values,
            _MARKS.get(mark, f"column {mark} of the document"),
        )
    if name != "token":
        labels = {name: labels["token"]}
    sequences, kept = len(table.sequences), int(table.keep.sum())
    return Text(
        name,
        labels,
        entries=lambda start, stop: token_block(table, start, stop),
        whole=table.sequence,
        kept=name == "token",
        says=f"{len(table):,} in {sequences:,} sequence{'s' if sequences > 1 else ''}, "
        f"{kept:,} kept: {table.corpus}",
        table=table,
    )


def token_block(table: TokenTable, start: int, stop: int, *, singly: bool = False) -> Tokens:
    """Tokens ``start`` to ``stop`` of a table, and the sequences that predict them.

    A row is a sequence up to its last token in the block; ``singly``, also up to each wanted token,
    which is then the only one of its row (``single`` of `Tokens`), and other tokens are found in
    the row of the next. Shorter rows are padded on the right: a causal model's earlier positions
    cannot see the padding.
    """
    import torch

    from confreg.effects import Tokens

    sequence, position = table.sequence[start:stop], table.position[start:stop]
    wanted = None if table.wanted is None else table.wanted[start:stop]
    last = np.append(sequence[1:] != sequence[:-1], True)
    ends = np.flatnonzero(last | wanted if singly and wanted is not None else last)
    inputs = np.zeros((len(ends), int(position[ends].max()) + 1), dtype=np.int64)
    for ids, end in zip(inputs, ends):
        length = position[end] + 1
        ids[:length] = table.sequences[sequence[end]][:length]
    row = np.searchsorted(ends, np.arange(stop - start))
    places = row * inputs.shape[1] + position
    right = accepted(table, start, stop)
    return Tokens(
        torch.from_numpy(inputs),
        torch.from_numpy(places),
        torch.from_numpy(np.ascontiguousarray(table.next_token_id[start:stop])),
        torch.from_numpy(np.ascontiguousarray(table.keep[start:stop])),
        None if wanted is None else torch.from_numpy(wanted.copy()),
        torch.from_numpy(places[wanted]) if singly and wanted is not None else None,
        accepted=None if right is None else torch.from_numpy(right),
    )
