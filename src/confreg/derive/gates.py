"""What a gated neuron does to the direction that it reads, in one phrase."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from confreg.axes import Axis, Variable
from confreg.sweep.step import Derivation

if TYPE_CHECKING:
    import xarray as xr

NAMES = {
    (1, 1): "enrichment",
    (1, 0): "conditional enrichment",
    (0, 1): "proportional change",
    (0, 0): "orthogonal output",
    (-1, 1): "depletion",
    (-1, 0): "conditional depletion",
}
COSINES = ("in_out_cosine", "gate_out_cosine", "gate_in_cosine")


def input_output(neurons: Axis, threshold: float = 0.5) -> Derivation:
    """Give ``input_output (neuron)``: the class of arXiv 2505.17936 by cosines of gated neurons.

    With t(x) the sign of x where |x| ≥ ``threshold`` and else 0, a = t(cos(in, out)) and
    b = |t(cos(gate, out))|: ``enrichment`` (a, b) = (1, 1), ``conditional enrichment`` (1, 0),
    ``proportional change`` (0, 1), ``orthogonal output`` (0, 0), ``depletion`` (−1, 1),
    ``conditional depletion`` (−1, 0). Where the three cosines do not agree, t(cos(gate, in)) is not
    a · t(cos(gate, out)) although a or b is not 0, it is an ``atypical`` one. Signs of (in, out)
    and of gate that leave the neuron as it is leave its class. It is empty where a cosine is NaN:
    the neuron's weights are not known (those of an expert), or it reads or writes nothing.

    Reads ``in_out_cosine``, ``gate_out_cosine`` and ``gate_in_cosine``. Gerstner and Schütze 2025,
    whose threshold is 0.5.
    """
    n = (neurons.name,)

    def classes(ds: xr.Dataset) -> dict[str, np.ndarray]:
        def t(name: str) -> np.ndarray:
            values = np.nan_to_num(ds[name].values)
            return np.where(np.abs(values) >= threshold, np.sign(values), 0).astype(int)

        a, out, between = map(t, COSINES)
        b = np.abs(out)
        odd = ((a != 0) | (b != 0)) & (between != a * out)
        unknown = np.any([np.isnan(ds[name].values) for name in COSINES], axis=0)
        words = [
            "" if u else ("atypical " if o else "") + NAMES[x, y]
            for x, y, o, u in zip(a.tolist(), b.tolist(), odd.tolist(), unknown.tolist())
        ]
        return {"input_output": np.array(words, dtype=object)}

    return Derivation(
        classes,
        reads=COSINES,
        gives=(Variable("input_output", n, "what the neuron does to what it reads", "", "str"),),
    )
