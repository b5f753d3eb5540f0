"""What a request uploads: at most 100 kB beyond its tokens, whatever the recipe and the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from confreg.execution import batches, statistics
from confreg.execution.plan import UPLOAD, Plan

from confreg import api
from confreg.effects.frequency import log_frequencies
from confreg.models import Model
from confreg.places.ndif.client import Client
from confreg.places.profiles import NdifProfile
from confreg.progress import Progress
from confreg.tokens.counts import Counts

LIMIT = 100_000
TOKENS = 8  # bytes each: int64, and compressed on the way


class Weighed(Exception):
    """A request was weighed instead of sent."""


class Scale(Client):
    """Weighs the requests that it is to send; answers those for activations, which are several."""

    def __init__(self, plan: Plan, model: Model, journal: Path):
        assert isinstance(plan.profile, NdifProfile)
        super().__init__(plan.profile, model, journal)
        self.members = len(plan.neurons)
        self.bytes: dict[str, int] = {}

    def run(self, key: str, serialise: Callable[[], bytes]) -> dict[str, Any]:
        name = key.partition("/")[0]
        self.bytes[name] = max(len(serialise()), self.bytes.get(name, 0))
        if name in ("values", "deviations"):
            return {"part": torch.rand(2, self.members, dtype=torch.float64)}
        raise Weighed


def weigh(recipe: str, model: str, folder: Path, **options: Any) -> tuple[Plan, dict[str, int]]:
    """Bytes of one request of each kind that a run sends."""
    profile = NdifProfile(kind="ndif", name="t", host="http://127.0.0.1:9", trusted=True)
    options = {"profile": profile, "dtype": "float32", **options}
    plan = api.make_plan(recipe, model=model, **options)
    n = len(plan.neurons)
    values = np.random.default_rng(0).normal(size=(2, n) if plan.sets else n).astype(np.float32)
    steps: dict[str, Callable[[Model], object]] = {
        "values": lambda m: statistics.ablation_values(plan, m),
        "effects": lambda m: plan.request.recipe.measure(
            m, batches.make_batch(plan, len(plan.neuron_units) - 1, 0, values), **plan.parameters
        ),
    }
    if plan.request.recipe.statistics:
        steps["weights"] = lambda m: statistics.weight_statistics(plan, m)
    if plan.counts is not None:
        steps["frequency"] = lambda m: statistics.frequency_cosines(plan, m)
    if plan.sets is not None:
        steps["deviations"] = lambda m: statistics.deviations(plan, m)
    with Scale(plan, api.load_model(plan, Progress(False)), folder / "jobs.jsonl") as scale:
        for name, step in steps.items():
            with contextlib.suppress(Weighed):
                step(scale.unit(name))
    assert scale.bytes.keys() == steps.keys()
    return plan, scale.bytes


# Structure is all that a remote run has of a model: these have the real ones' shapes but the width.
SHAPES = {
    "SmolLM2-135M": {"num_hidden_layers": 30, "intermediate_size": 1536, "vocab_size": 49_152},
    "Llama-3.1-70B": {"num_hidden_layers": 80, "intermediate_size": 28_672, "vocab_size": 128_256},
}


@pytest.fixture(scope="session")
def structure(tmp_path_factory):
    """``structure(name)``: folder of a configuration and a tokenizer, without weights."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("structure") / name
            config = zoo.config("llama", max_position_embeddings=512, **SHAPES[name])
            config.architectures = ["LlamaForCausalLM"]
            config.save_pretrained(made[name])
            zoo.tokenizer(config.vocab_size).save_pretrained(made[name])
        return made[name]

    return get


def counts(vocabulary: int, path: Path, tokens: int = 10_000_000) -> str:
    """As many as are counted by default, of tokens as rare as in text, in no order."""
    draw = np.random.default_rng(0)
    share = draw.permutation(1 / (np.arange(vocabulary) + 2.7))
    np.save(path, draw.poisson(tokens * share / share.sum()))
    return str(path)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("entropy_neurons", {}),
        ("entropy_neurons", {"neurons": "random:1000", "layer": 1}),
        ("token_frequency_neurons", {"all_layers": True}),
        ("confidence_in_context", {"neurons": "random:50"}),
        ("group_ablation", {"neurons": "LAST:0-5;LAST:0-49;LAST:0-299"}),
        ("group_ablation", {"neurons": "1:0-99", "layer": 1}),
    ],
)
def test_a_request_is_100_kB_beyond_its_tokens(structure, tmp_path, name, recipe, options):
    draw = np.random.default_rng(1)
    text = [" ".join(f"w{i}" for i in draw.integers(2, 40_000, 300)) for _ in range(8)]
    vocabulary = SHAPES[name]["vocab_size"]
    limit = LIMIT
    last = str(SHAPES[name]["num_hidden_layers"] - 1)
    options = options | {"neurons": options.get("neurons", "all").replace("LAST", last)}
    if recipe == "token_frequency_neurons":
        options = options | {"counts": counts(vocabulary, tmp_path / "counts.npy")}
        if vocabulary > 60_000:  # counts of so many tokens are more than that by themselves
            limit += int(0.85 * vocabulary) - UPLOAD // 2
    plan, sent = weigh(
        recipe, str(structure(name)), tmp_path, text=text, sequence_length=256,
        max_tokens=1024, **options,
    )  # fmt: skip
    rows = max(len(batches.token_block(plan.table, *span).inputs) for span in plan.token_units)
    assert max(sent.values()) <= limit + TOKENS * 256 * rows, sent


def test_counts_survive_the_way():
    values = np.array([0, 3, 254, 255, 256, 70_000, 2**40, 9, 9])
    planes = torch.from_numpy(Counts(values, "here").packed(real=7))
    assert planes.dtype == torch.uint8
    smoothed = (values + 1)[:7]
    expected = np.log(smoothed / smoothed.sum())
    np.testing.assert_allclose(log_frequencies(planes)[:7], expected, rtol=1e-6)
    assert (log_frequencies(planes)[7:] == -torch.inf).all()
