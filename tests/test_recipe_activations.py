"""Moments, extremes and kept activations against plain transformers', in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zoo
from scipy import stats
from test_recipe_universal import activations as plain

import confreg
from confreg import ConfregError
from confreg.models import Model
from confreg.steps.activity import Extremes

SMALL = {"sequence_length": 16, "max_tokens": 200, "progress": False}


def run(tmp_path, words, model, name="a", **more):
    return confreg.run(
        "activations", model=model, text=words, out=tmp_path / f"{name}.zarr", **{**SMALL, **more}
    ).load()  # fmt: skip


BEFORE = {
    "gpt2": ("transformer.h.{}.mlp.c_fc", slice(None)),
    "llama": ("model.layers.{}.mlp.gate_proj", slice(None)),
    "phi3": ("model.layers.{}.mlp.gate_up_proj", slice(0, 48)),
}


def above(kind, ds, layer):
    """Share of kept tokens at which what the activation function is given is above 0, (width,)."""
    network, _ = zoo.tiny(kind)
    path, part = BEFORE[kind]
    found = []
    hook = network.get_submodule(path.format(layer)).register_forward_hook(
        lambda module, given, out: found.append(out[0, :, part])
    )
    with hook, torch.no_grad():
        for s in np.unique(ds["sequence"]):
            network(torch.from_numpy(ds["token_id"].values[ds["sequence"].values == s])[None])
    return (torch.cat(found)[torch.from_numpy(ds["keep"].values)] > 0).double().mean(0).numpy()


@pytest.mark.parametrize("kind", sorted(BEFORE))
def test_moments_and_extremes_of_every_layer(kind, checkpoint, words, tmp_path):
    # Small units, so that blocks are merged and neurons cut.
    ds = run(tmp_path, words, str(checkpoint(kind)), top=4, unit_tokens=32, memory=500_000)
    keep, texts = np.flatnonzero(ds["keep"].values), ds["token_text"].values
    for layer in np.unique(ds["layer"]):
        seen = plain(kind, ds, layer)
        one = ds.sel(neuron=ds["layer"] == layer)
        expected = {
            "mean": seen.mean(0),
            "deviation": seen.std(0),
            "skew": stats.skew(seen),
            "kurtosis": stats.kurtosis(seen, fisher=False),
            "frequency": (seen > 0).mean(0),
        }
        for name, values in expected.items():
            np.testing.assert_allclose(one[f"activation_{name}"], values, rtol=2e-4, atol=1e-5)
        frequency = above(kind, ds, layer)
        np.testing.assert_allclose(one["preactivation_frequency"], frequency, atol=0.006)
        order = np.argsort(-seen, axis=0, kind="stable")
        np.testing.assert_allclose(
            one["highest"], np.take_along_axis(seen, order, 0)[:4].T, rtol=1e-5, atol=1e-5
        )
        np.testing.assert_allclose(
            one["lowest"], np.take_along_axis(seen, order, 0)[::-1][:4].T, rtol=1e-5, atol=1e-5
        )
        where = one["highest_token"].values
        at = np.take_along_axis(seen.T, np.searchsorted(keep, where), 1)
        np.testing.assert_allclose(at, one["highest"], rtol=1e-5, atol=1e-5)
        assert (one["highest_text"].values == texts[where]).all()
        assert (one["lowest_text"].values == texts[one["lowest_token"].values]).all()


def test_equal_values_are_named_in_the_order_of_the_text():
    found = Extremes(3, largest=True)
    found.add(torch.tensor([[1.0], [2.0]]), torch.tensor([4, 5]))
    found.add(torch.tensor([[2.0], [0.0], [2.0]]), torch.tensor([7, 8, 9]))
    assert found.values[:, 0].tolist() == [2.0, 2.0, 2.0]
    assert found.at[:, 0].tolist() == [5, 7, 9]


def test_activations_are_kept_in_half_the_room_and_the_error_is_what_is_said(
    checkpoint, words, tmp_path
):
    options = {"model": str(checkpoint("llama")), "neurons": "1:0-5,2:0-5", "activations": True}
    whole = run(tmp_path, words, **options)
    half = run(tmp_path, words, name="half", dtype_on_disk="float16", **options)
    assert whole["activation"].dtype == np.float32
    assert half["activation"].dtype == np.float16
    assert "float16" in half["activation"].attrs["long_name"]
    error = np.abs(half["activation"].astype(np.float32) - whole["activation"])
    assert float(error.max()) > 0
    assert bool((error <= np.maximum(np.abs(whole["activation"]) / 2048, 3e-8)).all())
    # Sums are of what was computed, not of what is kept.
    for name in ("activation_mean", "activation_kurtosis", "highest"):
        np.testing.assert_array_equal(half[name], whole[name])
    seen = plain("llama", whole, 1)[:, :6]
    kept = whole["activation"].values[:6, whole["keep"].values].T
    np.testing.assert_allclose(kept, seen, rtol=1e-5, atol=1e-5)
    # Correlations of stores in float16, whose squares would not fit it, are right.
    found = confreg.match(half.sel(neuron=half["layer"] == 1), half.sel(neuron=half["layer"] == 1))
    np.testing.assert_allclose(found["match_correlation"], 1, atol=1e-6)


def test_every_recipe_that_keeps_activations_may_halve_them(checkpoint, words, tmp_path):
    ds = confreg.run(
        "entropy_neurons", model=str(checkpoint("llama")), text=words, neurons="2:0-3",
        activations=True, dtype_on_disk="float16", out=tmp_path / "e.zarr", **SMALL,
    )  # fmt: skip
    assert ds["activation"].dtype == np.float16
    assert ds["effects"].dtype == np.float32


def test_what_does_not_fit_is_a_sentence(words, tmp_path):
    network, tokenizer = zoo.tiny("llama")
    for name, parameter in network.named_parameters():
        if "up_proj" in name or "gate_proj" in name:
            parameter.data.mul_(1e4)
    model = Model.wrap(network, tokenizer, name="loud")
    options = {"neurons": "2:0-3", "activations": True}
    with pytest.raises(ConfregError, match=r"'activation' has values up to .* float16 holds"):
        run(tmp_path, words, model, dtype_on_disk="float16", **options)
    run(tmp_path, words, model, name="wide", **options)


@pytest.mark.parametrize("top", [0, 100_000])
def test_senseless_numbers_of_tokens_are_refused(checkpoint, words, tmp_path, top):
    with pytest.raises(ConfregError, match="top is from 1 to"):
        run(tmp_path, words, str(checkpoint("llama")), top=top)


def test_no_number_is_no_moment(words, tmp_path):
    network, tokenizer = zoo.tiny("llama")
    network.model.layers[1].mlp.up_proj.weight.data[3] = torch.inf
    with pytest.raises(ConfregError, match="layer 1 are no finite numbers"):
        run(tmp_path, words, Model.wrap(network, tokenizer, name="broken"), neurons="1:0-5")
