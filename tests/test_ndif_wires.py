"""What a request uploads: at most 100 kB beyond its tokens, whatever the recipe and the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
import zstandard
from safetensors.torch import save_file

import confreg
from confreg import models
from confreg.axes import Variable
from confreg.effects import Entries
from confreg.effects.frequency import log_frequencies
from confreg.models import Model
from confreg.places.ndif.client import Client
from confreg.places.ndif.place import UPLOAD
from confreg.places.profiles import NdifProfile
from confreg.sweep.layout import Layout
from confreg.sweep.plan import Plan
from confreg.tokens.counts import Counts

LIMIT = 100_000
TOKENS = 8  # bytes each: int64, and compressed on the way
EXAMPLES = Path(__file__).parent.parent / "examples"


class Weighed(Exception):
    """A request was weighed instead of sent."""


class Scale(Client):
    """Keeps the requests that it is to send, as they would be sent."""

    def __init__(self, profile: NdifProfile, model: Model, journal: Path):
        super().__init__(profile, model, journal)
        self.requests: dict[str, bytes] = {}

    def run(self, key: str, serialise: Callable[[], bytes]) -> dict[str, Any]:
        self.requests[key.partition("/")[0]] = serialise()
        raise Weighed


class Anything(Mapping[str, np.ndarray]):
    """Stands for what a run has stored: numbers of the shapes that a plan declares."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.variables: dict[str, Variable] = {v.name: v for i in plan.items for v in i.gives}

    def __getitem__(self, name: str) -> np.ndarray:
        variable = self.variables[name]
        shape = [len(self.plan.axes[dim]) for dim in variable.dims]
        return np.random.default_rng(0).normal(size=shape).astype(variable.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.variables)

    def __len__(self) -> int:
        return len(self.variables)


def ask(recipe: str, model: str, folder: Path, **options: Any) -> tuple[Plan, dict[str, bytes]]:
    """One request of each step of a run: of the last entries, and the first tokens."""
    profile = NdifProfile(kind="ndif", name="t", host="http://127.0.0.1:9", trusted=True)
    options = {"profile": profile, "dtype": "float32", **options}
    plan = confreg.plan(recipe, model=model, **options)
    stored, structure = Anything(plan), models.load(model, dtype="float32", weights=False)
    with Scale(profile, structure, folder / "jobs.jsonl") as scale:
        for layout in plan.layouts:
            with contextlib.suppress(Weighed):
                trace(layout, scale, stored)
    assert scale.requests.keys() == {layout.step.title for layout in plan.layouts}
    return plan, scale.requests


def trace(layout: Layout, scale: Scale, stored: Mapping[str, np.ndarray]) -> None:
    texts = [layout.axes[name].whole is not None for name in layout.cuts]
    spans = layout.unit(tuple(0 if t else n - 1 for t, n in zip(texts, layout.counts)))
    if layout.step.unit is None:
        unit: Any = Entries(**{n: layout.axes[n].entries(*spans.bounds[n]) for n in spans})
    else:
        unit = layout.step.unit(spans, stored)
    layout.step.trace(scale.unit(layout.step.title), unit)


def weigh(recipe: str, model: str, folder: Path, **options: Any) -> tuple[Plan, dict[str, int]]:
    """Bytes of one request of each step of a run."""
    plan, requests = ask(recipe, model, folder, **options)
    return plan, {name: len(request) for name, request in requests.items()}


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


def text(count: int = 8) -> list[str]:
    draw = np.random.default_rng(1)
    return [" ".join(f"w{i}" for i in draw.integers(2, 40_000, 300)) for _ in range(count)]


def token_bytes(plan: Plan) -> int:
    """Bytes of the tokens of the largest unit, at most."""
    tokens = plan.axes["token"]
    spans = [span for layout in plan.layouts for span in layout.cuts.get("token", [])]
    return max(TOKENS * tokens.entries(*span).inputs.numel() for span in spans)


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
        ("induction", {"neurons": "LAST:0-99"}),
        ("bos_ablation", {"neurons": "LAST:0-99", "heads": "0.1,1.1"}),
    ],
)
def test_a_request_is_100_kB_beyond_its_tokens(structure, tmp_path, name, recipe, options):
    vocabulary = SHAPES[name]["vocab_size"]
    limit = LIMIT
    last = str(SHAPES[name]["num_hidden_layers"] - 1)
    options = options | {"neurons": options.get("neurons", "all").replace("LAST", last)}
    if recipe == "token_frequency_neurons":
        options = options | {"counts": counts(vocabulary, tmp_path / "counts.npy")}
        if vocabulary > 60_000:  # counts of so many tokens are more than that by themselves
            limit += int(0.85 * vocabulary) - UPLOAD // 2
    plan, sent = weigh(
        recipe, str(structure(name)), tmp_path, text=text(), sequence_length=256,
        max_tokens=1024, **options,
    )  # fmt: skip
    if recipe in ("entropy_neurons", "token_frequency_neurons"):
        assert "weight-space statistics" in sent
    assert ("token-frequency cosines" in sent) == (recipe == "token_frequency_neurons")
    assert max(sent.values()) <= limit + token_bytes(plan), sent


@pytest.mark.parametrize("engine", ["auto", "forward"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("example", ["probability", "latents", "steering"])
def test_so_is_a_request_of_a_users_own_recipe(structure, tmp_path, name, example, engine):
    options: dict[str, Any] = {"engine": engine}
    if example == "latents":
        width, count = 32, 4096
        shapes = {"W_enc": (width, count), "W_dec": (count, width)}
        shapes |= {"b_enc": (count,), "b_dec": (width,)}
        draw = torch.Generator().manual_seed(0)
        tables = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
        save_file(tables, tmp_path / "sae.safetensors")
        options["file"] = str(tmp_path / "sae.safetensors")
    plan, sent = weigh(
        str(EXAMPLES / f"{example}.py"), str(structure(name)), tmp_path, text=text(),
        sequence_length=256, max_tokens=1024, **options,
    )  # fmt: skip
    assert max(sent.values()) <= LIMIT + token_bytes(plan), sent


# The name of a class or a function that only one of the engines has.
OWN = {"series": b"JointMoments", "exact": b"def exact_token", "forward": b"def copied"}


PROBABILITY = str(EXAMPLES / "probability.py")


@pytest.mark.parametrize(
    ("recipe", "engine"),
    [
        *(("entropy_neurons", engine) for engine in OWN),
        (PROBABILITY, "exact"),
        (PROBABILITY, "forward"),
    ],
)
def test_a_request_carries_the_source_of_its_own_engine_only(structure, tmp_path, recipe, engine):
    options = {"text": text(1), "neurons": "random:20", "effects": ["all"]}
    options |= {"engine": engine, "max_tokens": 64}
    _, requests = ask(recipe, str(structure("SmolLM2-135M")), tmp_path, **options)
    sent = zstandard.ZstdDecompressor().decompressobj().decompress(requests["effects"])
    carried = {name for name, mark in OWN.items() if mark in sent}
    # What the series leaves to the exact sums needs them.
    assert carried == {"series": {"series", "exact"}}.get(engine, {engine})


ROOM = '''
"""Mean activations: the module of effects is named in the trace itself."""

import nnsight

from confreg import Step, Variable, recipe
from confreg import effects as fx


@recipe()
def activity(study):
    tokens, neurons = study.tokens(), study.neurons()
    total = Variable("total", ("neuron",), "sum", dtype="float64", added_over=("token",))
    return Step(sums, over=(neurons, tokens), gives=(total,))


def sums(model, unit):
    site = model.site(-1)
    with model.trace(unit.token.inputs) as tracer:
        found = fx.pick(site.neurons.input, unit.token.positions, unit.neuron.index)
        found = nnsight.save(found.double().sum(0).cpu())
        tracer.stop()
    return {"total": found}
'''


def test_a_trace_that_names_the_module_of_effects_carries_all_of_it(structure, tmp_path):
    file = tmp_path / "room.py"
    file.write_text(ROOM)
    options = {"text": text(1), "max_tokens": 64}
    _, requests = ask(str(file), str(structure("SmolLM2-135M")), tmp_path, **options)
    request = requests["sums"]
    sent = zstandard.ZstdDecompressor().decompressobj().decompress(request)
    assert all(mark in sent for mark in OWN.values())
    assert len(request) < LIMIT


def test_counts_survive_the_way():
    values = np.array([0, 3, 254, 255, 256, 70_000, 2**40, 9, 9])
    planes = torch.from_numpy(Counts(values, "here").packed(np.arange(9) < 7))
    assert planes.dtype == torch.uint8
    smoothed = (values + 1)[:7]
    expected = np.log(smoothed / smoothed.sum())
    np.testing.assert_allclose(log_frequencies(planes)[:7], expected, rtol=1e-6)
    assert (log_frequencies(planes)[7:] == -torch.inf).all()
