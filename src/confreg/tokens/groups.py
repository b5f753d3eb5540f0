"""Kept tokens in groups, by the value of one of their labels: what ``--by`` asks for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from confreg.axes import Axis, Label
from confreg.errors import ConfregError

if TYPE_CHECKING:
    from confreg.tokens.axis import Text
    from confreg.tokens.counts import Counts

FREQUENCY = "frequency"
MOST = 1000  # groups


@dataclass(frozen=True, eq=False)
class Groups:
    """Which group each token is in.

    Attributes
    ----------
    by
        The label.
    axis
        The axis ``group``: the label's values at kept tokens, in order.
    codes
        Which of them, int64 (T,); -1 at tokens that are not kept.
    """

    by: str
    axis: Axis
    codes: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Kept tokens of each group."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.axis))


def grouped(text: Text, by: str, counts: Counts | None = None) -> Text:
    """The tokens, in groups by a label.

    Parameters
    ----------
    text
    by
        One of the axis's labels, or ``"frequency"``: the power of ten below the next token's
        frequency, (count + 1)/Σ, which becomes a label then.
    counts
        Of tokens.

    Raises
    ------
    ConfregError
        There is no such label, or it has too many values.
    """
    if by == FREQUENCY and by not in text.labels:
        if counts is None:
            raise ConfregError(
                "--by frequency needs token counts, which this recipe does not take: "
                "token_frequency_neurons does."
            )
        label = Label(
            decades(counts.values, text.table.next_token_id),
            "power of ten below the next token's frequency, 1 where there is no next token",
        )
        text = replace(text, labels={**text.labels, by: label})
    if by not in text.labels:
        raise ConfregError(
            f"--by {by}: tokens have no such label. They have {', '.join(text.labels)}; columns of "
            "the documents are labels if --columns names them."
        )
    values, keep = text.labels[by].values, text.keep
    names, inverse = np.unique(values[keep], return_inverse=True)
    if len(names) > MOST:
        raise ConfregError(
            f"--by {by}: it has {len(names):,} values at kept tokens, and groups are at most "
            f"{MOST:,}. Name a coarser label."
        )
    codes = np.full(len(text), -1, dtype=np.int64)
    codes[keep] = inverse
    long_name = f"value of {by}: {text.labels[by].long_name}"
    return replace(text, groups=Groups(by, Axis.of("group", names, long_name), codes))


def decades(counts: np.ndarray, token_id: np.ndarray) -> np.ndarray:
    """⌊log₁₀ p⌋ of tokens, p = (count + 1)/Σ over the vocabulary; 1 where the token is -1."""
    smoothed = counts.astype(np.float64) + 1
    power = np.floor(np.log10(smoothed / smoothed.sum())).astype(np.int64)
    return np.where(token_id >= 0, power[np.maximum(token_id, 0)], 1)
