"""A real model: SmolLM2-135M, from its wheel, against the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import run_oracle
import torch

import confreg
from confreg import models

pytestmark = pytest.mark.model
NEURONS, TOKENS = 32, 256


@pytest.fixture(scope="module")
def model():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield models.load("smollm2-135m")
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory):
    """The same 32 neurons × 256 tokens by every engine."""
    out = tmp_path_factory.mktemp("smollm2")
    return {
        engine: confreg.run(
            "entropy_neurons", model=model, neurons=f"random:{NEURONS}", max_tokens=TOKENS,
            engine=engine, out=out / f"{engine}.zarr",
            effects=None if engine == "series" else ["all"],
            activations=True, progress=False, seed=5,
        ).load()
        for engine in ("series", "exact", "forward")
    }  # fmt: skip


@pytest.fixture(scope="module")
def truth(model, runs):
    return run_oracle.truth_of(model, runs["forward"], 29, 4)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["series", "exact", "forward"])
def test_every_engine_agrees_with_the_oracle(runs, truth, engine):
    ds = runs[engine]
    assert ds["effects"].shape[:2] == (NEURONS, TOKENS)
    run_oracle.assert_agrees(ds, truth)


def test_engines_agree_on_the_likeliest_token(runs):
    forward, exact = (
        runs[e]["effects"].sel(effect="top1_total").values for e in ("forward", "exact")
    )
    assert (forward != exact).mean() < 1e-3  # near ties
    assert forward.any()


def test_it_is_a_real_model(model, runs):
    ids = model.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        likeliest = int(model.nn._module(ids).logits[0, -1].argmax())
    assert model.tokenizer.decode(likeliest) == " Paris"
    assert 1 < float(np.nanmean(runs["exact"]["loss"])) < 5
