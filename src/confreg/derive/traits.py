"""What makes some neurons different from the others of their layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from confreg.axes import Axis, Label, Variable
from confreg.derive.roles import percentiles
from confreg.sweep.step import Derivation

if TYPE_CHECKING:
    import xarray as xr


def traits(neurons: Axis, layer: np.ndarray, chosen: str, names: Sequence[str]) -> Derivation:
    """Percentiles within the layer of the neurons that a truth value marks.

    Gives ``trait_percentile (trait)``, the mean over marked neurons of the percentile that each has
    among the neurons of its layer (50 is chance); ``trait_p``, two-sided, of the rank test of
    Mann and Whitney of marked percentiles against the others; ``trait_by_layer (trait,
    marked_layer)``, medians, NaN in layers without a marked neuron; and ``marked_count
    (marked_layer)``. Gurnee et al. 2024 (arXiv 2401.12181), section 4.2.

    Parameters
    ----------
    neurons : Axis
    layer : ndarray (n,)
    chosen : str
        Variable over neurons that marks some.
    names : sequence of str
        Variables over neurons: the traits.
    """
    present = np.unique(layer)
    trait = Axis(
        "trait",
        {"trait": Label(list(names), "what neurons differ in", kind="subject")},
    )
    there = Axis("marked_layer", {"marked_layer": Label(present.astype(np.int32), "layer, from 0")})

    def of_marked(ds: xr.Dataset) -> dict[str, np.ndarray]:
        from scipy import stats

        marked = ds[chosen].values.astype(bool)
        mean, p = np.full(len(names), np.nan), np.full(len(names), np.nan)
        by_layer = np.full((len(names), len(present)), np.nan)
        for row, name in enumerate(names):
            found = percentiles(ds[name].values.astype(np.float64), layer)
            known = np.isfinite(found)
            ours, others = found[marked & known], found[~marked & known]
            if len(ours):
                mean[row] = ours.mean()
            if len(ours) and len(others):
                p[row] = stats.mannwhitneyu(ours, others).pvalue
            for column, one in enumerate(present):
                here = found[marked & known & (layer == one)]
                if len(here):
                    by_layer[row, column] = np.median(here)
        counts = np.array([(marked & (layer == one)).sum() for one in present])
        return {
            "trait_percentile": mean,
            "trait_p": p,
            "trait_by_layer": by_layer,
            "marked_count": counts,
        }

    both = ("trait", "marked_layer")
    return Derivation(
        of_marked,
        reads=(chosen, *names),
        along=(trait, there),
        gives=(
            Variable("trait_percentile", ("trait",), f"mean percentile of {chosen} neurons", "%"),
            Variable("trait_p", ("trait",), f"p that {chosen} neurons differ", "1", "float64"),
            Variable("trait_by_layer", both, f"median percentile of {chosen} neurons", "%"),
            Variable("marked_count", ("marked_layer",), f"{chosen} neurons", "1", "int64"),
        ),
    )
