"""Gemma 4: layers that scale their output, and those in which more follows the MLP."""

from __future__ import annotations

import oracle
import pytest
import torch
import zoo

import confreg
from confreg import models
from confreg.errors import ConfregError
from confreg.models import Model

PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": zoo.ROWS}
VALUES = torch.linspace(-1, 2, 12)


def test_the_scale_of_the_last_layer_is_learnt_from_activations():
    network, words = zoo.tiny("gemma4_text")
    model = Model.wrap(network, words)
    own = float(network.model.layers[-1].layer_scalar)
    assert abs(own - 1) > 0.05
    assert model.write_spec(-1)["multiplier"] == pytest.approx(own, rel=1e-6)
    assert model.write_spec(0)["multiplier"] == 1  # nobody asks for it
    network.model.layers[-1].layer_scalar.fill_(-0.4)
    again = Model.wrap(network, words)
    assert again.write_spec(-1)["multiplier"] == pytest.approx(-0.4, rel=1e-6)


def test_what_follows_the_mlp_leaves_the_forward_engine(tmp_path, words):
    model = Model.wrap(*zoo.tiny("gemma4_text", **PER_LAYER))
    choice = {"model": model, "text": words, "sequence_length": 12, "max_tokens": 24}
    choice |= {"neurons": "2.0,2.7", "progress": False}
    with pytest.raises(ConfregError, match="a gated input of the token's own follows its MLP"):
        confreg.plan("entropy_neurons", engine="exact", **choice)
    ds = confreg.run("entropy_neurons", out=tmp_path / "e.zarr", **choice)
    assert ds.attrs["engine"] == "forward"
    ids = torch.from_numpy(ds["token_id"].values).view(2, 12)
    judge = oracle.Oracle(model.nn._module)
    values = torch.from_numpy(ds["ablation_value"].values)
    truth = judge.ablate(ids, 2, [0, 7], values).effects
    for name in ("loss_total", "loss_direct", "entropy_total"):
        mine = torch.from_numpy(ds["effects"].sel(effect=name).values).double()
        assert truth[name].nan_to_num().abs().max() > 0.01
        torch.testing.assert_close(mine, truth[name], rtol=0, atol=1e-4, equal_nan=True)


def test_layers_of_different_width_are_refused():
    config = zoo.config("gemma4_text", use_double_wide_mlp=True, num_kv_shared_layers=1)
    with pytest.raises(ConfregError, match="different numbers of neurons"):
        models.model.describe_config(config, zoo.tokenizer(), "tiny")
