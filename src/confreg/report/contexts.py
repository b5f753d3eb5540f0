"""The most affected tokens of a neuron, in the text around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from confreg.report.neurons import subject
from confreg.report.wording import effect_label, number, signed

if TYPE_CHECKING:
    import xarray as xr

BEFORE, AFTER = 32, 12  # tokens shown around the affected one
_VISIBLE = str.maketrans({"\n": "↵", "\r": "␍", "\t": "⇥"})


@dataclass(frozen=True)
class Word:
    """A token as shown: its text, how strongly each colour is on, and its numbers.

    ``shades`` are in [−1, 1], one for each effect; ``underline`` likewise or None;
    ``numbers`` are the same as text, in the order of :attr:`Detail.quantities`.
    """

    text: str
    shades: list[float]
    underline: float | None
    numbers: str
    focus: bool


@dataclass(frozen=True)
class Context:
    """One affected token with the text around it."""

    sequence: int
    position: int
    effect: str
    following: str
    words: list[Word]


@dataclass(frozen=True)
class Detail:
    """What is shown of one neuron.

    ``limits`` are the effect sizes that the full colours stand for, one for each of
    ``shaded``; ``underlined`` says what the underline means, "" if there is none.
    """

    neuron: str
    shaded: list[str]
    limits: list[str]
    underlined: str
    contexts: list[Context]


class Tokens:
    """The per-token labels of a dataset, read once."""

    def __init__(self, ds: xr.Dataset) -> None:
        self.text = [str(text).translate(_VISIBLE) for text in ds["token_text"].values]
        self.sequence = np.asarray(ds["sequence"].values)
        self.position = np.asarray(ds["position"].values)
        self.keep = np.asarray(ds["keep"].values, dtype=bool)
        self.base = {name: np.asarray(ds[name].values) for name in ("loss", "rank") if name in ds}

    def following(self, token: int) -> str:
        """Return the text of the token after this one, "" at the end of a sequence."""
        after = token + 1
        inside = after < len(self.text) and self.sequence[after] == self.sequence[token]
        return self.text[after] if inside else ""

    def window(self, token: int) -> range:
        """Return the tokens around one, within its sequence."""
        start = token - min(BEFORE, int(self.position[token]))
        end = token + 1
        while (
            end < min(token + AFTER + 1, len(self.text))
            and self.sequence[end] == self.sequence[token]
        ):
            end += 1
        return range(start, end)


def shaded_effects(ds: xr.Dataset) -> list[str]:
    """Return the effects that colour the text: the total ones, or all if none is."""
    names = [str(name) for name in ds["effect"].values]
    totals = [name for name in names if name.endswith("_total")]
    return totals or names


def has_activation(ds: xr.Dataset) -> bool:
    """Say whether the dataset knows an activation of what it ablates."""
    return "activation" in ds and subject(ds) in ds["activation"].dims


def quantities(ds: xr.Dataset) -> list[str]:
    """Return what the numbers of a word are, in order."""
    names = [effect_label(name) for name in shaded_effects(ds)]
    names += ["activation"] if has_activation(ds) else []
    return names + [f"unablated {name}" for name in ("loss", "rank") if name in ds]


def detail(ds: xr.Dataset, tokens: Tokens, neuron: str, count: int = 6) -> Detail:
    """Find the tokens that ablating a neuron affects most, and colour the text around them.

    Only this neuron's part of the cube is read. "Most" is the largest absolute value of
    the first of :func:`shaded_effects`, over kept tokens, at most one in a window.
    """
    dim = subject(ds)
    row = [str(label) for label in ds[dim].values].index(neuron)
    names = shaded_effects(ds)
    cube = ds["effects"].isel({dim: row}).sel(effect=names).transpose("token", "effect")
    effects = np.asarray(cube.values, dtype=float)
    activation = ds["activation"].isel({dim: row}).values if has_activation(ds) else None
    centres = _most_affected(effects[:, 0], tokens, count)
    windows = [tokens.window(token) for token in centres]
    shown = np.array(sorted({token for window in windows for token in window}), dtype=int)
    limits = _limits(effects[shown])
    under = None if activation is None else _around_value(ds, row, activation, shown)
    contexts = []
    for centre, window in zip(centres, windows, strict=True):
        words = []
        for token in window:
            strength = np.nan_to_num(effects[token] / limits)
            words.append(
                Word(
                    text=tokens.text[token],
                    shades=[round(float(s), 2) for s in np.clip(strength, -1, 1)],
                    underline=None if under is None else round(float(under[token]), 2),
                    numbers=_numbers(effects[token], activation, tokens, token),
                    focus=token == centre,
                )
            )
        contexts.append(
            Context(
                sequence=int(tokens.sequence[centre]),
                position=int(tokens.position[centre]),
                effect=signed(effects[centre, 0]),
                following=tokens.following(centre),
                words=words,
            )
        )
    return Detail(
        neuron=neuron,
        shaded=[effect_label(name) for name in names],
        limits=[number(limit, 2) for limit in limits],
        underlined="" if under is None else _underline_meaning(ds, row),
        contexts=contexts,
    )


def _most_affected(effect: np.ndarray, tokens: Tokens, count: int) -> list[int]:
    size = np.where(tokens.keep & np.isfinite(effect), np.abs(effect), -1.0)
    chosen: list[int] = []
    for token in np.argsort(-size, kind="stable"):
        if size[token] <= 0 or len(chosen) == count:
            break
        if not any(
            tokens.sequence[token] == tokens.sequence[other] and abs(token - other) <= BEFORE
            for other in chosen
        ):
            chosen.append(int(token))
    return chosen


def _limits(effects: np.ndarray) -> np.ndarray:
    """Return the largest finite size of each effect, 1 where it is nothing: (E,)."""
    size = np.abs(np.where(np.isfinite(effects), effects, 0.0))
    top = size.max(axis=0, initial=0.0)
    return np.where(top > 0, top, 1.0)


def _around_value(
    ds: xr.Dataset, row: int, activation: np.ndarray, shown: np.ndarray
) -> np.ndarray:
    away = np.asarray(activation, dtype=float) - _ablation_value(ds, row)
    top = np.abs(away[shown]).max(initial=0.0)
    return np.nan_to_num(np.clip(away / (top or 1.0), -1, 1))


def _ablation_value(ds: xr.Dataset, row: int) -> float:
    if "ablation_value" not in ds:
        return 0.0
    value = float(ds["ablation_value"].isel(neuron=row))
    return value if np.isfinite(value) else 0.0


def _underline_meaning(ds: xr.Dataset, row: int) -> str:
    return f"activation against {number(_ablation_value(ds, row))}, to which it is ablated"


def _numbers(effects: np.ndarray, activation: np.ndarray | None, tokens: Tokens, token: int) -> str:
    values = [signed(value) for value in effects]
    if activation is not None:
        values.append(number(activation[token]))
    if "loss" in tokens.base:
        values.append(number(tokens.base["loss"][token]))
    if "rank" in tokens.base:
        rank = int(tokens.base["rank"][token])
        values.append("–" if rank < 0 else str(rank))
    return "|".join(values)
