"""Values that are typical of a neuron: mean, median, mode, clipped extremes, quantiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from confreg.axes import Variable
from confreg.errors import ConfregError
from confreg.steps.values import SEEN, VALUE, Ablation, Value, every_activation, from_text
from confreg.subjects.ways import MEAN, TYPICAL, Way
from confreg.sweep.step import Derivation

if TYPE_CHECKING:
    import xarray as xr

    from confreg.study import Study
    from confreg.subjects.neurons import NeuronAxis
    from confreg.tokens.axis import Text

BINS = 100


def typical_values(
    study: Study,
    neurons: NeuronAxis,
    tokens: Text,
    ways: Sequence[Way],
    *,
    over: str = "all",
    mean_from: str = "",
) -> Value:
    """What replaces activations in some ways: ``ablation_value``, the mean, and ``value_…``.

    Every activation is read, up to the neurons' layer, unless no way needs any.

    Parameters
    ----------
    study : Study
    neurons, tokens : Axis
    ways : sequence of Way
    over : {"all", "kept"}
        Which tokens they are over.
    mean_from : str
        Other text that they are over, named as ``--text`` is.

    Raises
    ------
    ConfregError
        There are no such tokens, or ``mean_from`` is no text.
    """
    from confreg import earlier

    if mean_from and earlier.is_store(mean_from):
        raise ConfregError(
            f"mean_from={mean_from!r} is a store, which holds means and no quantiles: name text."
        )
    sources = dict.fromkeys([MEAN, *(way.source for way in ways if way.source)])
    if not any(way.source for way in ways):
        return Value(Ablation("mean"), None, [], {})
    where = study.sample(mean_from) if mean_from else tokens
    mask = where.over(over)
    said: dict[str, str | int] = {"mean_over": over, "mean_over_tokens": int(mask.sum())}
    if mean_from:
        said |= from_text(mean_from, where)
    step = every_activation(
        neurons, where,
        "Medians, modes and quantiles over several requests would send every activation over the "
        "wire: run this recipe here.",
    )  # fmt: skip

    def typical(ds: xr.Dataset) -> dict[str, np.ndarray]:
        values = ds[SEEN].values[:, mask].astype(np.float64)
        return {name: of(name, values).astype(np.float32) for name in sources}

    gives = [VALUE if name == MEAN else _variable(name) for name in sources]
    derived = Derivation(typical, tuple(gives), by=neurons.name, reads=(SEEN,))
    return Value(Ablation("mean"), None, [step, derived], said)


def of(name: str, values: np.ndarray) -> np.ndarray:
    """One typical value of each of n neurons from their activations (n, T), (n,).

    Where an activation is NaN (an expert's neuron at a token that is not routed to it) it does not
    count; the value is NaN where none does. ``name`` is that of the variable; quantiles are linear
    between order statistics.
    """
    there = ~np.isnan(values)
    if not there.all():
        rows = (row[known][None] for row, known in zip(values, there))
        return np.array([of(name, row)[0] if row.size else np.nan for row in rows])
    kind = name.removeprefix("value_")
    mean, spread = values.mean(1), values.std(1)
    if name == MEAN:
        return mean
    if kind == "median":
        return np.median(values, 1)
    if kind == "mode":
        return np.array([mode(row) for row in values])
    if kind == "low":
        return np.maximum(mean - 3 * spread, values.min(1))
    if kind == "high":
        return np.minimum(mean + 3 * spread, values.max(1))
    return np.quantile(values, float(kind[1:].replace("_", ".")) / 100, axis=1)


def mode(values: np.ndarray) -> float:
    """Middle of the fullest of 100 bins of equal width between the extremes, of equals the first.

    It is the value itself where all are the same.
    """
    if values.min() == values.max():
        return float(values[0])
    counts, edges = np.histogram(values, BINS)
    first = int(counts.argmax())
    return float(edges[first] + edges[first + 1]) / 2


def _variable(name: str) -> Variable:
    kind = name.removeprefix("value_")
    text = TYPICAL.get(kind) or f"{kind[1:].replace('_', '.')} % quantile of the activation"
    return Variable(name, ("neuron",), text)
