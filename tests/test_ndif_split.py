"""Halves of a unit, measured one after the other, are the unit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from confreg.declaration import find
from confreg.execution import batches, remote
from confreg.execution.plan import Request, make_plan

from confreg import models, tokens


@pytest.fixture(scope="module")
def model(checkpoint):
    return models.load(str(checkpoint("llama")))


def unit(model, words, engine, values, layer=2):
    table = tokens.cut(tokens.read(words), model.tokenizer, 16, max_tokens=70)
    request = Request(
        recipe=find("entropy_neurons"), model=model.name, engine=engine, neurons=f"{layer}:3-9",
        activations=True, parameters={"ablation": values or "mean"},
    )  # fmt: skip
    plan = make_plan(request, model.description, table)
    given = None if values is None else np.full(len(plan.neurons), values, dtype=np.float32)
    return plan, batches.make_batch(plan, 0, 0, given)


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
    plan, batch = unit(model, words, engine, values, layer)

    def measure(part):
        with torch.no_grad():
            return plan.request.recipe.measure(model, part, **plan.parameters)

    whole = measure(batch)
    first, second = remote.halves(batch)
    if along == "token":
        assert first.inputs.shape[0] + second.inputs.shape[0] == batch.inputs.shape[0]
        assert min(len(first.positions), len(second.positions)) > 0
    else:
        assert len(first.neurons) + len(second.neurons) == len(batch.neurons)
    joined = remote.join(measure(first), measure(second), along)
    assert joined.keys() == whole.keys()
    for name in whole.keys() - {"sampled", "error_sum", "error_max", "recomputed"}:
        torch.testing.assert_close(
            torch.as_tensor(joined[name]), torch.as_tensor(whole[name]),
            atol=2e-6, rtol=1e-5, equal_nan=True,
        )  # fmt: skip
    assert joined["sampled"] > 0 or engine == "forward"


@pytest.mark.parametrize(("engine", "along"), [("exact", "token"), ("forward", "set")])
def test_halves_of_sets_join_to_the_whole(model, words, engine, along):
    recipe = find("induction")
    table = tokens.repeats.of_text(tokens.read(words), model.tokenizer, 6, count=3)
    request = Request(
        recipe=recipe, model=model.name, engine=engine, neurons="2.3,2.9",
        parameters={"random_sets": 2},
    )  # fmt: skip
    plan = make_plan(request, model.description, table)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, len(plan.neurons))).astype(np.float32)
    values[1] = np.sign(values[1])
    batch = batches.make_batch(plan, 0, 0, values)
    first, second = remote.halves(batch)
    assert any(side.any() for side in batch.set_sides)
    assert not batch.wanted.all()
    with torch.no_grad():
        whole, *parts = (
            recipe.measure(model, part, **plan.parameters) for part in (batch, first, second)
        )
    joined = remote.join(*parts, along)
    assert joined.keys() == whole.keys()
    for name in ("effects", "activation", "loss", "abs_sum"):
        assert joined[name].shape == whole[name].shape
        torch.testing.assert_close(joined[name], whole[name], atol=5e-6, rtol=1e-5, equal_nan=True)


def test_one_neuron_of_one_sequence_cannot_be_cut(model, words):
    _, batch = unit(model, words, "exact", None)
    while (parts := remote.halves(batch)) is not None:
        batch = parts[0]
    assert len(batch.neurons) == 1
