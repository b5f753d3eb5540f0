"""Halves of a unit, measured one after the other, are the unit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import confreg
from confreg import models
from confreg.axes import Spans
from confreg.effects import Unit
from confreg.sweep.budget import Block
from confreg.sweep.layout import Layout


@pytest.fixture(scope="module")
def model(checkpoint):
    return models.load(str(checkpoint("llama")))


class Work:
    """The step of a recipe that measures effects: its first unit, and what a trace makes of it."""

    def __init__(self, model, recipe, stored, **options):
        self.model, self.stored = model, stored
        self.layout: Layout = confreg.plan(recipe, model=model, **options).layout("effects")
        self.whole = self.layout.units()[0]

    def unit(self, spans: Spans) -> Unit:
        return self.layout.step.unit(spans, self.stored)

    def measure(self, spans: Spans) -> Block:
        with torch.no_grad():
            return self.layout.check(self.layout.step.trace(self.model, self.unit(spans)), spans)


def work(model, words, engine, value, layer=2) -> Work:
    stored = {"ablation_value": np.full(7, value or 0, dtype=np.float32)}
    return Work(
        model, "entropy_neurons", stored, text=words, engine=engine, neurons=f"{layer}:3-9",
        activations=True, ablation="mean" if value is None else value, sequence_length=16,
        max_tokens=70,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("engine", "values", "layer", "along"),
    [
        ("exact", 0.25, 2, "token"),
        ("series", 0.25, 2, "token"),
        ("exact", None, 2, "neuron"),
        ("forward", 0.25, 1, "neuron"),
    ],
)
def test_halves_join_to_the_whole(model, words, engine, values, layer, along):
    job = work(model, words, engine, values, layer)
    whole = job.measure(job.whole)
    first, second, axis = job.layout.halves(job.whole)
    assert axis == along
    full, one, two = (job.unit(spans) for spans in (job.whole, first, second))
    if along == "token":
        assert one.inputs.shape[0] + two.inputs.shape[0] == full.inputs.shape[0]
        assert min(len(one.tokens), len(two.tokens)) > 0
    else:
        assert len(one.edits) + len(two.edits) == len(full.edits)
    joined = job.layout.join(job.measure(first), job.measure(second), axis)
    assert joined.keys() == whole.keys()
    for name in whole.keys() - {"sampled", "error_sum", "error_largest", "recomputed"}:
        np.testing.assert_allclose(
            joined[name], whole[name], atol=2e-6, rtol=1e-5, equal_nan=True, err_msg=name
        )
    assert joined["sampled"] > 0 or engine == "forward"


@pytest.mark.parametrize(("engine", "along"), [("exact", "token"), ("forward", "set")])
def test_halves_of_sets_join_to_the_whole(model, words, engine, along):
    rng = np.random.default_rng(0)
    names = ("ablation_value", "mean_first", "mean_second")
    stored = {name: rng.normal(size=32).astype(np.float32) for name in names}
    job = Work(
        model, "induction", stored, text=words, engine=engine, neurons="2.3,2.9",
        random_sets=2, length=6, count=3, sequence_length=16,
    )  # fmt: skip
    first, second, axis = job.layout.halves(job.whole)
    assert axis == along
    unit = job.unit(job.whole)
    assert any(side.any() for side in unit.edits.sides)
    assert not unit.tokens.wanted.all()
    whole, *parts = (job.measure(spans) for spans in (job.whole, first, second))
    joined = job.layout.join(*parts, axis)
    assert joined.keys() == whole.keys()
    for name in ("effects", "activation", "loss", "effect_abs_sum"):
        assert joined[name].shape == whole[name].shape
        np.testing.assert_allclose(
            joined[name], whole[name], atol=5e-6, rtol=1e-5, equal_nan=True, err_msg=name
        )


def test_one_neuron_of_one_sequence_cannot_be_cut(model, words):
    job = work(model, words, "exact", None)
    spans = job.whole
    while (parts := job.layout.halves(spans)) is not None:
        spans = parts[0]
    assert len(job.unit(spans).edits) == 1
