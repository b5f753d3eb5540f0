"""Activations, magnitudes and cosines that are not there: NaN, and never a number in its place."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from confreg import derive
from confreg.axes import Axis
from confreg.derive import conflicts, p_values
from confreg.derive.repeats import occurrence_means, shift, shift_p
from confreg.steps import typical

NAN = np.nan


@pytest.mark.parametrize("kind", ["mean", "median", "mode", "low", "high", "q25"])
def test_typical_values_are_of_the_activations_that_there_are(kind):
    name = "ablation_value" if kind == "mean" else f"value_{kind}"
    drawn = np.random.default_rng(0).normal(size=(2, 40))
    holes = np.full((3, 60), NAN)
    holes[:2, 5:45] = drawn
    np.testing.assert_array_equal(typical.of(name, holes), [*typical.of(name, drawn), NAN])


def test_missing_controls_are_no_evidence_and_what_is_missing_has_no_p():
    kind = np.array(["chosen", "random", "random", "random", "chosen", "random"], object)
    ds = xr.Dataset(coords={"set_kind": ("set", kind), "set_control": ("set", [0] * 4 + [1] * 2)})
    p = p_values(ds, np.array([[2, NAN, 5], [3, 1, NAN], [1, 9, NAN], [NAN, 9, 7], [1] * 3,
                               [NAN] * 3]))  # fmt: skip
    np.testing.assert_allclose(p[0], [2 / 3, NAN, 2 / 2])
    assert np.isnan(p[1:]).all()
    below = conflicts.quantiles(ds, np.array([[2.0], [3], [1], [NAN], [1], [NAN]]))
    np.testing.assert_array_equal(below[:, 0], [0.5, *[NAN] * 5])


def test_a_shift_is_over_pairs_of_tokens_at_which_the_neuron_is_there_twice():
    marks = {
        "sequence": [0] * 6, "aligned": [0, 1, 2] * 2, "occurrence": [0] * 3 + [1] * 3,
        "compared": [True] * 6,
    }  # fmt: skip
    found = shift(np.array([[1, 2, NAN, 4, NAN, 9], [1, NAN, 3, NAN, 5, NAN], [7.0] * 6]), **marks)
    np.testing.assert_array_equal(found.mean, [3, NAN, 0])
    np.testing.assert_array_equal(found.sd, [0, NAN, 0])
    np.testing.assert_array_equal(found.sigma, [3 / np.std([1, 4]), NAN, 0])
    p = shift_p([0.5, NAN, NAN, -0.7, 0.1], [True, True, False, False, False])
    np.testing.assert_array_equal(p, [2 / 3, *[NAN] * 4])
    first, second = occurrence_means(
        np.array([[1, NAN, 4, 6], [NAN, NAN, 1, 1]]), [0, 0, 1, 1], [True] * 4
    )
    np.testing.assert_array_equal([first, second], [[1, NAN], [5, 1]])


def test_a_neuron_whose_cosines_are_not_known_is_of_no_class():
    neurons = Axis.of("neuron", np.arange(3), "neuron")
    ds = xr.Dataset({
        "in_out_cosine": ("neuron", [0.1, NAN, 0.9]),
        "gate_out_cosine": ("neuron", [0.1, 0.9, NAN]),
        "gate_in_cosine": ("neuron", [0.1, 0.9, 0.9]),
    })  # fmt: skip
    found = derive.input_output(neurons).compute(ds)["input_output"]
    assert found.tolist() == ["orthogonal output", "", ""]
