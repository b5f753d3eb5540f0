"""A model without a final norm: nothing acts through its scale, so total and direct are one."""

from __future__ import annotations

import functools

import numpy as np
import oracle
import pytest
import torch
import tracing
import zoo

import confreg
from confreg import effects as fx
from confreg.models import Model

VALUES = torch.linspace(-1, 2, 12)


class NormFree(oracle.Oracle):
    """The oracle, with a divisor of 1 where the norm is an identity."""

    def _divisor(self, x):
        return torch.ones_like(x[..., 0])


@functools.cache
def norm_free(architecture):
    network, words = zoo.tiny(architecture)
    parent, name = oracle.PATHS[architecture][1].split(".")
    setattr(getattr(network, parent), name, torch.nn.Identity())
    return Model.wrap(network, words)


@pytest.mark.parametrize("engine", ["forward", "exact", "series"])
@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_total_is_direct_and_the_oracle_s(architecture, engine):
    model, ids = norm_free(architecture), zoo.tokens()
    unit = tracing.unit_of(ids, VALUES, 2, engine)
    found = dict(zip(tracing.EFFECTS, tracing.measure(model, unit)["effects"].unbind(-1)))
    judge = NormFree(model.nn._module)
    truth = judge.ablate(ids, 2, list(range(len(VALUES))), VALUES).effects
    for name in ("loss", "entropy"):
        total, direct = found[f"{name}_total"], found[f"{name}_direct"]
        assert torch.equal(total.nan_to_num(), direct.nan_to_num())
        assert total.nan_to_num().abs().max() > 0.01
        torch.testing.assert_close(
            total.double(), truth[f"{name}_total"], rtol=0, atol=1e-4, equal_nan=True
        )


def test_sets_of_neurons_have_one_effect_too():
    model, ids = norm_free("gpt2"), zoo.tokens()
    edits = fx.Together([torch.tensor([1, 5]), torch.tensor([2, 3])], [torch.zeros(2)] * 2)
    chosen = (fx.loss.total, fx.loss.direct)
    unit = fx.Unit(tracing.all_tokens(ids), edits, fx.Exact(), chosen, layer=2)
    total, direct = tracing.measure(model, unit)["effects"].unbind(-1)
    assert torch.equal(total.nan_to_num(), direct.nan_to_num())
    judge = oracle.Oracle(model.nn._module)
    clean = oracle.loss(judge.forward(ids)[0], ids)
    for row, members in zip(total, ((1, 5), (2, 3))):
        after = oracle.loss(judge.replaced(ids, 2, dict.fromkeys(members, 0.0)), ids)
        expected = (after - clean).flatten()
        torch.testing.assert_close(row.double(), expected, rtol=0, atol=1e-4, equal_nan=True)


def test_the_mediated_share_is_nothing(tmp_path, words):
    """The control: a recipe that looks for what acts through the scale finds nothing."""
    network, tokenizer = zoo.tiny("gpt2")
    choice = {"text": words, "sequence_length": 16, "max_tokens": 64, "progress": False}
    usual = confreg.run(
        "entropy_neurons", model=Model.wrap(network, tokenizer), out=tmp_path / "a.zarr", **choice
    )
    assert float(np.abs(usual["mediated"]).max()) > 0.01
    free = confreg.run(
        "entropy_neurons", model=norm_free("gpt2"), out=tmp_path / "b.zarr", **choice
    )
    assert float(free["te"].min()) > 0
    np.testing.assert_array_equal(free["te"], free["de"])
    np.testing.assert_array_equal(free["te_mediated"], 0)
    np.testing.assert_array_equal(free["mediated"], 0)


def test_an_epsilon_that_outweighs_every_residual_is_no_norm_either():
    """A norm divides by a constant where its ε is huge: checkpoints can say so."""
    network, words = zoo.tiny("gpt2", layer_norm_epsilon=1e12)
    network.transformer.ln_f.weight.mul_(1e6)
    for layer in network.transformer.h:
        layer.ln_1.weight.mul_(1e6)
        layer.ln_2.weight.mul_(1e6)
    model, ids = Model.wrap(network, words), zoo.tokens()
    truth = oracle.Oracle(network).ablate(ids, 2, list(range(12)), VALUES).effects
    for engine in ("forward", "exact", "series"):
        unit = tracing.unit_of(ids, VALUES, 2, engine)
        found = dict(zip(tracing.EFFECTS, tracing.measure(model, unit)["effects"].unbind(-1)))
        total, direct = found["loss_total"], found["loss_direct"]
        torch.testing.assert_close(total, direct, rtol=0, atol=5e-5, equal_nan=True)
        for mine in (total, direct):
            torch.testing.assert_close(
                mine.double(), truth["loss_total"], rtol=0, atol=1e-4, equal_nan=True
            )
