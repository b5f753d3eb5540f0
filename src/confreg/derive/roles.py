"""What a neuron does to the vocabulary, in one word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from confreg.axes import Axis, Variable
from confreg.sweep.step import Derivation

if TYPE_CHECKING:
    import xarray as xr


def roles(
    neurons: Axis,
    layer: np.ndarray,
    *,
    kurtosis_above: float = 10.0,
    variance_above: float = 0.005,
    norm_quantile: float = 0.75,
) -> Derivation:
    """Give ``role (neuron)`` and ``w_out_norm_percentile``, ``logit_var_percentile (neuron)``.

    The first that holds: ``prediction`` or ``suppression``, kurtosis of the cosines above
    ``kurtosis_above``, with skew above 0 or not; ``partition``, their variance above
    ``variance_above`` (both: the public code of Gurnee et al. 2024, arXiv 2401.12181, chosen for
    GPT-2 medium); ``entropy``, a candidate for an entropy neuron, a norm at or above the quantile
    ``norm_quantile`` of its layer (Du et al. 2025, arXiv 2504.02904) and ρ above what the largest
    of as many random directions has (Stolfo et al. 2024, arXiv 2406.16254, ask for both to be
    large); else ``other``. A neuron that writes nothing is ``other``.

    Parameters
    ----------
    neurons : Axis
    layer : ndarray (n,)
        Layer of each: percentiles, in [0, 100], are among the axis's neurons of one layer.
    """
    n = (neurons.name,)

    def role(ds: xr.Dataset) -> dict[str, np.ndarray]:
        kurtosis, skew = ds["vocab_kurtosis"].values, ds["vocab_skew"].values
        norm = percentiles(ds["w_out_norm"].values, layer)
        large = norm >= 100 * norm_quantile
        beyond_chance = ds["null_fraction"].values > float(ds["null_fraction_chance_max"])
        found = np.select(
            [
                (kurtosis > kurtosis_above) & (skew > 0),
                kurtosis > kurtosis_above,
                ds["logit_var"].values > variance_above,
                large & beyond_chance,
            ],
            ["prediction", "suppression", "partition", "entropy"],
            "other",
        )
        return {
            "role": found.astype(object),
            "w_out_norm_percentile": norm,
            "logit_var_percentile": percentiles(ds["logit_var"].values, layer),
        }

    return Derivation(
        role,
        reads=(
            "vocab_kurtosis", "vocab_skew", "logit_var", "w_out_norm", "null_fraction",
            "null_fraction_chance_max",
        ),
        gives=(
            Variable("role", n, "what the neuron does to the vocabulary", "", "str"),
            Variable("w_out_norm_percentile", n, "percentile of w_out_norm in its layer", "%"),
            Variable("logit_var_percentile", n, "percentile of logit_var in its layer", "%"),
        ),
    )  # fmt: skip


def within_layer(neurons: Axis, layer: np.ndarray, names: Sequence[str]) -> Derivation:
    """Give ``NAME_percentile (neuron)`` of some variables: among the axis's neurons of the layer.

    Parameters
    ----------
    neurons : Axis
    layer : ndarray (n,)
    names : sequence of str
        Variables over neurons.
    """

    def ranked(ds: xr.Dataset) -> dict[str, np.ndarray]:
        return {f"{name}_percentile": percentiles(ds[name].values, layer) for name in names}

    return Derivation(
        ranked,
        reads=tuple(names),
        gives=tuple(
            Variable(f"{n}_percentile", (neurons.name,), f"percentile of {n} in its layer", "%")
            for n in names
        ),
    )


def percentiles(values: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """Percentile of each among those of its layer, as scipy's ``percentileofscore`` by rank."""
    from scipy import stats

    found = np.empty(len(values))
    for one in np.unique(layer):
        here = layer == one
        known = max(int((~np.isnan(values[here])).sum()), 1)
        found[here] = 100 * stats.rankdata(values[here], nan_policy="omit") / known
    return found
