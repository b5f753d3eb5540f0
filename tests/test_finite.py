"""What is no finite number is said, and never counted as zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
import zoo

import confreg
from confreg import effects as fx
from confreg.effects.tally import Tally
from confreg.models import Model
from confreg.steps.effects import errors


def half(scale: float) -> Model:
    """A tiny float16 model whose weights are ``scale`` times as large."""
    network, tokenizer = zoo.tiny("llama")
    for parameter in network.parameters():
        parameter.data.mul_(scale)
    return Model.wrap(network.half(), tokenizer, name="half")


def measured(model: Model, words: list[str], tmp_path, **options):
    return confreg.run(
        "entropy_neurons", model=model, text=words, sequence_length=16, max_tokens=64,
        neurons="2:0-3", progress=False, out=tmp_path / "o.zarr", **options,
    )  # fmt: skip


@pytest.mark.parametrize("engine", ["series", "exact", "forward"])
def test_a_model_that_overflows_is_refused_by_token_and_dtype(words, tmp_path, engine):
    with pytest.raises(confreg.ConfregError) as said:
        measured(half(40.0), words, tmp_path, engine=engine)
    for part in ("loss of half", "position 3 of sequence 0", "float16", "--dtype float32"):
        assert part in str(said.value)


def test_the_same_weights_smaller_are_measured(words, tmp_path):
    ds = measured(half(1.0), words, tmp_path)
    assert np.isfinite(ds["te"]).all()
    assert (ds["te"] > 0).all()
    assert "effects_undefined" not in ds.attrs


def test_what_is_no_number_is_left_out_of_sums_and_counted():
    tally = Tally(2, torch.tensor([True, True, False]), 1, cube=True)
    effects = torch.tensor([[1.0, torch.nan, torch.nan], [torch.inf, -2.0, 0.0]])[..., None]
    tally.add(slice(0, 2), slice(0, 3), effects)
    out = tally.result()
    assert out["effect_sum"][:, 0].tolist() == [1.0, -2.0]
    assert out["effect_undefined"][:, 0].tolist() == [1, 1]


def test_means_are_over_what_was_summed(words, tmp_path):
    def sometimes(logits, targets):
        odd = targets % 2 == 1
        return torch.where(odd, logits.amax(-1), torch.nan)

    largest = fx.Measure("largest", "1", "largest logit, of odd targets", of=sometimes)

    @confreg.recipe(effects=(largest.total,))
    def odd_ones(study):
        from confreg.recipes.entropy_neurons import ablate

        from confreg import steps

        tokens, neurons = study.tokens(), study.neurons(-1)
        value = steps.ablation_value(study, neurons, tokens, "zero")
        return steps.ablation(study, ablate, neurons, tokens, effects=study.effects(), to=value)

    network, tokenizer = zoo.tiny("llama")
    ds = confreg.run(
        odd_ones, model=Model.wrap(network, tokenizer), text=words, sequence_length=16,
        max_tokens=64, neurons="2:0-3", progress=False, out=tmp_path / "o.zarr",
    )  # fmt: skip
    kept = ds["effects"].sel(effect="largest_total").values[:, ds["keep"].values]
    assert np.isnan(kept).any()
    np.testing.assert_allclose(
        ds["effect_mean"].sel(effect="largest_total"), np.nanmean(kept, axis=1), rtol=1e-5
    )


def test_errors_are_by_unit():
    """A near tie of ranks is no error of a nat."""
    twice = fx.Measure("twice", "1", "twice the loss", of=lambda logits, targets: (
        -2 * logits.log_softmax(-1).gather(-1, targets.clamp_min(0)[:, None])[:, 0]
    ))  # fmt: skip
    effects = (fx.loss.total, fx.rank.total, twice.total)
    derivation = errors(effects, 1e-5)
    ds = xr.Dataset(
        {
            "pairs": 100.0,
            "recomputed": 0.0,
            "sampled": 10.0,
            "error_sum": ("effect", [1e-6, 2.0, 5.0]),
            "error_largest": ("effect", [2e-7, 1.0, 3.0]),
        }
    )
    found = derivation.compute(ds)
    assert found["error_max"] == 2e-7
    assert found["error_mean"] == 1e-7
    assert found["error_warning"] == ""
    assert found["effect_error"].tolist() == [2e-7, 1.0, 3.0]
    ds["error_largest"][0] = 1e-3
    assert "1.0e-03 nats" in derivation.compute(ds)["error_warning"]
