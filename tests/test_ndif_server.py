"""A real NDIF server on loopback: the same recipe, the same numbers, and every fault.

One server for all of them: SmolLM2-135M and tiny random models, from a loopback Hub.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import xarray as xr
import zoo
import zstandard
from conftest import EVERYTHING, need
from hub import Hub
from resuming import digest
from safetensors.numpy import save_file

import confreg
from confreg import effects as fx
from confreg import models
from confreg.axes import Spans
from confreg.cli import main
from confreg.errors import ConfregError
from confreg.models import Model, agreement, embedded, verified
from confreg.places import doctor, profiles
from confreg.places.ndif import check, client, http, place, server
from confreg.places.ndif.faults import Transient
from confreg.places.ndif.identity import model_key
from confreg.places.ndif.journal import journal_path
from confreg.steps import upload
from confreg.sweep.budget import Block
from confreg.sweep.layout import Layout
from confreg.sweep.store import Store

pytestmark = [pytest.mark.remote, pytest.mark.slow]

TEXT = [" ".join(f"w{(7 * k + 3 * i) % 90 + 2}" for i in range(40)) for k in range(6)]
PATIENCE = 300.0  # of a machine that has much else to do
TINY = ("gpt2", "llama", "qwen2_moe", "qwen3_moe")
MODELS = [*(f"lab/tiny-{architecture}" for architecture in TINY), "lab/smollm2-135m"]
# Neurons of SmolLM2 that do much, some by hiding it in the norm, and some others.
STRONG = "29.1514,29.1460,29.1463,29.1501,29.1022,29.830,29.0,29.7"
SMOLLM2 = {"text": None, "sequence_length": 32, "max_tokens": 64}
SIZE = {"text": TEXT, "sequence_length": 16, "max_tokens": 64, "dtype": "float32"}

# A user's own recipe: one trace, and a helper module beside it.
RECIPE = '''
"""Entropy neurons, in no hurry."""

import kitchen
import nnsight

from confreg import derive, recipe, steps
from confreg import effects as fx

EFFECTS = (fx.loss.total, fx.loss.direct)


@recipe(effects=EFFECTS)
def slowly(study, *, layer: int = -1, ablation: float | str = "mean", seconds: float = 1.0):
    tokens, neurons = study.tokens(), study.neurons(layer)
    value = steps.ablation_value(study, neurons, tokens, ablation)

    def unhurried(model, unit):
        return ablate(model, unit, seconds)

    return [
        steps.ablation(study, unhurried, neurons, tokens, effects=EFFECTS, to=value),
        derive.mediation(neurons, tokens, EFFECTS, fx.loss.total, fx.loss.direct),
    ]


def ablate(model, unit, seconds):
    site = model.site(unit.layer)

    with model.trace(unit.inputs):
        kitchen.rest(seconds)
        activation = site.neurons.input
        block = site.measure(unit, activation)
        nnsight.save(block)

    return block
'''
KITCHEN = """
import time


def rest(seconds):
    for _ in range(int(seconds * 20)):
        time.sleep(0.05)
"""


class Lab:
    """A server, the Hub it loads from, and the profile that reaches it."""

    def __init__(self, status: server.Status, hub: Hub, folder: Path):
        self.status, self.hub, self.folder = status, hub, folder
        self.profile = str(status.profile)

    def run(self, model: str, out: Path, recipe: str = "entropy_neurons", **options) -> xr.Dataset:
        options = {**SIZE, "profile": self.profile, "progress": False, **options}
        return confreg.run(recipe, model=model, out=out, **options).load()

    def parts(self) -> dict[str, int]:
        return dict(server.status(self.folder).parts or {})

    def actors(self) -> list[psutil.Process]:
        """Processes that hold a model and run blocks."""
        found = []
        for process in psutil.Process(self.status.supervisor).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                if process.cmdline()[:1] == ["ray::SandboxedActor.run"]:
                    found.append(process)
        return found

    def state(self, job: str) -> str | None:
        """What the server says of a job."""
        with contextlib.closing(http.Server(profiles.load(self.profile), None)) as api:
            try:
                return (api.response(job, http.Deadline(30)) or {}).get("status")
            except Transient:
                return None

    def healthy(self) -> bool:
        """Whether every model runs."""
        with contextlib.closing(http.Server(profiles.load(self.profile), None)) as api:
            try:
                found = api.get("/status", seconds=70)["deployments"].values()
            except Transient:
                return False
        return [d["application_state"] for d in found] == ["RUNNING"] * len(MODELS)


@contextlib.contextmanager
def laboratory(root: Path, folder: Path) -> Iterator[Lab]:
    """Bring a server up, with a Hub in ``root`` that it loads from; nothing is left of it."""
    for architecture in TINY:
        zoo.save(architecture, root / "lab" / f"tiny-{architecture}")
    shutil.copytree(embedded.ensure("smollm2-135m"), root / "lab" / "smollm2-135m")
    with pytest.MonkeyPatch.context() as patch, Hub(root) as hub:
        patch.setenv("CONFREG_PROFILES", str(folder / "profiles"))
        with hub.adopted(folder / "client-hub"):
            status = server.up(MODELS, device="cpu", hub=hub.url, folder=folder, owner=os.getpid())
            supervisor = psutil.Process(status.supervisor)
            everything = supervisor.children(recursive=True)
            try:
                yield Lab(status, hub, folder)
            finally:
                everything += supervisor.children(recursive=True)
                server.down(folder)
    # Nothing that the server ever started is left, nor the profile that led to it.
    assert not [p for p in {*everything, supervisor} if p.is_running()]
    assert not status.profile.exists()


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """Bring the server up once."""
    need("redis-server")
    try:
        server.environment.find_python()
    except ConfregError as error:
        (pytest.fail if EVERYTHING else pytest.skip)(str(error))
    with laboratory(tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("ndif")) as lab:
        yield lab


def write_recipe(folder: Path) -> str:
    """A recipe that takes its time, and the module beside it."""
    (folder / "slowly.py").write_text(RECIPE)
    (folder / "kitchen.py").write_text(KITCHEN)
    return str(folder / "slowly.py")


@pytest.fixture
def recipe(tmp_path) -> Iterator[str]:
    yield write_recipe(tmp_path)
    # Where it was imported in this process, the next test's is another.
    sys.modules.pop("kitchen", None)
    sys.modules.pop("slowly", None)
    sys.path[:] = [folder for folder in sys.path if folder != str(tmp_path)]


@pytest.fixture(scope="session")
def local(lab, tmp_path_factory):
    """``local(model, **options)``: the same run in this process."""
    made: dict[str, xr.Dataset] = {}

    def get(model: str, **options) -> xr.Dataset:
        key = json.dumps([model, options], default=str)
        if key not in made:
            out = tmp_path_factory.mktemp("local") / "local.zarr"
            made[key] = lab.run(model, out, profile="memory", **options)
        return made[key]

    return get


# How the closed forms fared depends on how units are cut.
OF_UNITS = {"recomputed_share", "error_sampled_pairs", "error_max", "error_mean", "effect_error"}


def assert_equal(remote: xr.Dataset, local: xr.Dataset, atol: float = 1e-5) -> None:
    """Every variable and coordinate that a local run has, within ``atol`` nats."""
    assert set(local.variables) == {n for n in remote.variables if not str(n).startswith("job_")}
    for name in set(local.variables) - OF_UNITS:
        mine, theirs = remote[name].values, local[name].values
        if mine.dtype.kind == "f":
            # An effect of four nats, too.
            rtol = 0 if name == "effects" else 1e-5
            np.testing.assert_allclose(mine, theirs, atol=atol, rtol=rtol, err_msg=str(name))
        else:
            np.testing.assert_array_equal(mine, theirs, err_msg=str(name))


@pytest.mark.parametrize("sandbox", [False, True], ids=["trusted", "sandboxed"])
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("lab/tiny-gpt2", {"effects": ["all"], "engine": "exact"}),
        ("lab/tiny-llama", {}),
        ("lab/smollm2-135m", SMOLLM2 | {"neurons": STRONG}),
    ],
)
def test_remote_equals_local(lab, local, tmp_path, model, options, sandbox):
    # Units that are cut elsewhere give the same numbers.
    overrides = {"sandbox": sandbox, "memory": "30MB" if "smollm2" in model else "1GB"}
    ds = lab.run(model, tmp_path / "run.zarr", overrides=overrides, **options)
    assert_equal(ds, local(model, **options))
    assert ds.attrs["dtype"] == "float32"
    assert ds.attrs["host"] == lab.status.url.removeprefix("http://")
    assert (ds["job_seconds"] > 0).all()


def test_half_precision_within_the_spread_of_two_local_shapes(lab, local, tmp_path):
    model = "lab/tiny-llama"
    options = {"dtype": "bfloat16"}
    one, other = (local(model, memory=m, **options) for m in ("1GB", "120KB"))
    spread = max(1e-5, float(abs(one["effects"] - other["effects"]).max()))
    assert one.attrs["dtype"] == "bfloat16"
    # The server says which dtype it runs, and a run in another one is refused.
    with pytest.raises(ConfregError, match=r"runs there in float32.*the profile says bfloat16"):
        lab.run(model, tmp_path / "refused.zarr", overrides={"dtype": "bfloat16"}, **options)
    folder = lab.folder / "half"
    status = server.up(
        [model], device="cpu", dtype="bfloat16", hub=lab.hub.url, folder=folder,
        profile="ndif-half", owner=os.getpid(),
    )  # fmt: skip
    try:
        for sandbox in (False, True):
            out, overrides = tmp_path / f"{sandbox}.zarr", {"sandbox": sandbox}
            ds = lab.run(model, out, profile=str(status.profile), overrides=overrides, **options)
            assert ds.attrs["dtype"] == "bfloat16"
            assert_equal(ds, one, atol=spread)
    finally:
        server.down(folder)
    # Not what float32 gives.
    assert abs(one["effects"] - local(model)["effects"]).max() > 10 * spread


def test_an_earlier_layer_by_real_interventions(lab, local, tmp_path):
    options = {"neurons": "1:0-5", "effects": ["all"]}
    ds = lab.run("lab/tiny-llama", tmp_path / "run.zarr", **options)
    assert ds.attrs["engine"] == "forward"
    assert_equal(ds, local("lab/tiny-llama", **options))


@pytest.mark.parametrize(
    ("model", "neurons", "engine", "sandbox"),
    [
        ("lab/tiny-qwen3_moe", "routed:top:9,expert:3", "series", False),
        ("lab/tiny-qwen2_moe", "expert:3,2.shared.1-4", "exact", False),
        ("lab/tiny-qwen2_moe", "1.4.0-3,1.shared.1-2,0.5", "forward", False),
        ("lab/tiny-qwen2_moe", "2.shared.0-7", "series", True),
        ("lab/tiny-qwen2_moe", "1.shared.1-2,0.5", "forward", True),
    ],
)
def test_experts(lab, local, tmp_path, model, neurons, engine, sandbox):
    options = {"neurons": neurons, "engine": engine, "activations": True}
    ds = lab.run(model, tmp_path / "run.zarr", overrides={"sandbox": sandbox}, **options)
    assert ds.attrs["engine"] == engine
    assert ds["activation"].isnull().any() == (not sandbox)
    assert (ds["routed_tokens"] > 0).any()
    assert np.abs(ds["effects"]).max() > 0.01
    assert_equal(ds, local(model, **options))


def test_experts_that_a_sandbox_has_not_are_not_asked_for(lab, tmp_path):
    with pytest.raises(ConfregError, match=r"2\.3\.0 and 7 more are neurons of routed experts"):
        lab.run(
            "lab/tiny-qwen2_moe", tmp_path / "run.zarr", neurons="expert:3,2.shared.1",
            overrides={"sandbox": True},
        )  # fmt: skip
    assert not records(tmp_path / "run.zarr")


def assert_complete(ds: xr.Dataset) -> None:
    assert ds.attrs["complete"]
    assert np.isfinite(ds["te"]).all()


def test_reductions_only(lab, local, tmp_path):
    ds = lab.run("lab/tiny-gpt2", tmp_path / "run.zarr", reduce="token")
    assert "effects" not in ds
    assert_equal(ds, local("lab/tiny-gpt2", reduce="token"))
    assert ds["job_bytes_down"].max() < 48 * 4 * 8 * 2 + 64 * 40 + 8000


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("token_frequency_neurons", {"all_layers": True}),
        ("confidence_in_context", {"neurons": "LAST:0-3"}),
        ("group_ablation", {"neurons": "LAST:0-3;LAST:5-6", "random_sets": 2}),
        ("induction", {"neurons": "LAST:1-3", "random_sets": 2, "length": 6}),
    ],
)
@pytest.mark.parametrize(
    ("model", "sandbox"),
    [
        ("lab/tiny-gpt2", True),
        ("lab/tiny-llama", False),
        ("lab/smollm2-135m", False),
        ("lab/smollm2-135m", True),
    ],
    ids=["gpt2-sandboxed", "llama-trusted", "smollm2-trusted", "smollm2-sandboxed"],
)
def test_the_other_recipes(lab, local, tmp_path, model, sandbox, recipe, options):
    last = "29" if "smollm2" in model else "2"
    neurons = options.get("neurons", f"{last}:0-7" if "smollm2" in model else "all")
    options = {**options, "recipe": recipe, "neurons": neurons.replace("LAST", last)}
    if "smollm2" in model:
        options |= SMOLLM2 | {"all_layers": False} if "all_layers" in options else SMOLLM2
    ds = lab.run(model, tmp_path / "run.zarr", overrides={"sandbox": sandbox}, **options)
    assert_equal(ds, local(model, **options))


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("entropy_neurons", {}),
        ("token_frequency_neurons", {}),
        ("confidence_in_context", {}),
        ("group_ablation", {"neurons": "2:0-3", "random_sets": 20}),
    ],
)
def test_small_wires(lab, tmp_path, recipe, options):
    text = [" ".join(f"w{(7 * k + k * i) % 90 + 2}" for i in range(40)) for k in range(30)]
    out = tmp_path / "run.zarr"
    options |= {"text": text, "max_tokens": None}
    ds = lab.run("lab/tiny-llama", out, recipe, **options)
    assert ds["job_bytes_up"].max() < 100_000 + 8 * ds.sizes["token"]
    units = [r for r in records(out) if r["event"] == "collected" and "_effects:" in r["key"]]
    assert len(units) == 1
    held = [ds[name].values.tobytes() for name in ("effects", "activation") if name in ds]
    compressed = sum(len(zstandard.compress(each)) for each in held)
    assert compressed > 200_000
    assert units[0]["bytes_down"] < 1.1 * compressed


@pytest.mark.parametrize("sandbox", [False, True], ids=["trusted", "sandboxed"])
def test_heads_by_name(lab, local, tmp_path, sandbox):
    options = {
        "recipe": "bos_ablation", "heads": "0.1,1.3", "neurons": "2:0-3", "activations": True,
        "length": 7, "random_sets": 2, "score_length": 6,
    }  # fmt: skip
    out = tmp_path / "run.zarr"
    ds = lab.run("lab/tiny-llama", out, overrides={"sandbox": sandbox}, **options)
    assert np.abs(ds["activation_change"]).max() > 0.01
    # There are no attention patterns to score heads by.
    assert_equal(ds, local("lab/tiny-llama", **options).drop_dims(["model_layer", "head"]))


@pytest.mark.parametrize("sandbox", [False, True], ids=["trusted", "sandboxed"])
@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("activations", {"neurons": "1:0-5,2:0-5", "activations": True, "top": 3}),
        ("universal_neurons", {"neurons": "2:0-5", "other": ("lab/tiny-llama",), "draws": 2}),
    ],
)
def test_a_unit_of_several_traces(lab, local, tmp_path, recipe, options, sandbox):
    options = {**options, "recipe": recipe, "memory": "200000"}
    overrides = {"sandbox": sandbox, "memory": options.pop("memory")}
    ds = lab.run("lab/tiny-llama", tmp_path / "run.zarr", overrides=overrides, **options)
    assert_equal(ds, local("lab/tiny-llama", **options))


def test_several_jobs_in_flight_and_a_websocket(lab, local, tmp_path):
    options = {"memory": 120_000}  # four units
    whole = local("lab/tiny-llama", **options)
    for overrides in ({"jobs_in_flight": 4}, {"blocking": True, "jobs_in_flight": 2}):
        out = tmp_path / f"{len(overrides)}.zarr"
        ds = lab.run("lab/tiny-llama", out, overrides=overrides, **options)
        assert ds.sizes["job"] > 4
        assert_equal(ds, whole)


def test_doctor_is_green(lab):
    checks = doctor.check(lab.profile, {}, "lab/tiny-llama")
    assert all(check.ok for check in checks), [c for c in checks if not c.ok]
    said = {check.name: check.sentence for check in checks}
    assert "runs there in float32" in said["lab/tiny-llama"]
    assert "0.8.0 there" in said["nnsight"]


@pytest.mark.parametrize("sandbox", [False, True], ids=["trusted", "sandboxed"])
def test_the_doctor_asks_another_release_for_its_modules(lab, monkeypatch, sandbox):
    usual = check._installed
    monkeypatch.setattr(
        check, "_installed", lambda name: "5.99.0" if name == "transformers" else usual(name)
    )

    def judged(model: str) -> tuple[bool, str]:
        found = doctor.check(lab.profile, {"sandbox": sandbox}, model)
        return {each.name: (each.ok, each.sentence) for each in found}["modules"]

    assert judged("lab/tiny-llama") == (True, "all 20 paths that requests name agree")
    usually = models.load

    def renamed(*args: Any, **options: Any) -> Model:
        """As a release would build it that calls an MLP's matrix otherwise."""
        model = usually(*args, **options)
        for layer in model.nn._module.model.layers:
            layer.mlp.w2 = layer.mlp.down_proj
            del layer.mlp.down_proj
        row = dataclasses.replace(model.description.row, down_projection="mlp.w2")
        return Model(model.nn, dataclasses.replace(model.description, row=row))

    monkeypatch.setattr(models, "load", renamed)
    ok, sentence = judged("lab/tiny-llama")
    assert not ok
    assert sentence.startswith("model.layers.0.mlp.w2 and 2 more that requests name are not there")


@pytest.mark.parametrize(
    ("kind", "sandbox"),
    [("llama", False), ("qwen3_moe", False), ("qwen2_moe", True)],
)
def test_a_row_is_verified_there(lab, tmp_path, monkeypatch, capsys, kind, sandbox):
    monkeypatch.setenv("CONFREG_CACHE", str(tmp_path))
    here = Model.wrap(*zoo.tiny(kind))
    with monkeypatch.context() as patch:
        if sandbox:  # of experts, the shared one is there
            patch.setattr(fx.Routed, "sealed", lambda self: True)
        expected = agreement.engines(here, agreement.tokens_for(here.description))
    model, asked = f"lab/tiny-{kind}", f"sandbox={str(sandbox).lower()}"
    main(["verify", model, "--profile", lab.profile, "-P", asked])
    said = " ".join(capsys.readouterr().out.split())
    assert f"{model} at {lab.status.url.removeprefix('http://')}: {kind}, row tested" in said
    experts = kind.endswith("moe")
    for part in ("logits", "heads", *["experts"] * experts):
        assert f"{part} not at a server" in said
    (record,) = verified.every()
    assert record["versions"]["nnsight"] == "0.8.0"  # the server's
    of = {"scale": "logit", "causal": "logit", "exact": "largest", "series": "largest"}
    of |= {} if experts else {"neurons": "neuron"}
    assert {part["part"] for part in record["compared"]} == set(of)
    for part in record["compared"]:
        assert part["difference"] < 2e-5
        assert part["largest"] == pytest.approx(expected[of[part["part"]]], rel=1e-4)


def test_experts_alone_are_not_verified_in_a_sandbox(lab, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["verify", "lab/tiny-qwen3_moe", "--profile", lab.profile, "-P", "sandbox=true"])
    assert ended.value.code == 2
    assert "it reads neurons of routed experts" in capsys.readouterr().err


def test_a_row_that_is_wrong_is_found_out_there(lab, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CONFREG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CONFREG_ARCHITECTURES", str(tmp_path))
    wrong = 'model_type = "llama"\nlike = "llama"\nmultiplier = 0.5\n'
    (tmp_path / "mine.toml").write_text(wrong)
    with pytest.raises(SystemExit) as ended:
        main(["verify", "lab/tiny-llama", "--profile", lab.profile])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert "differs" in said.out
    assert "effects by forward and by exact differ" in said.err
    assert [record["ok"] for record in verified.every()] == [False]


def test_a_result_over_the_limit_is_split(lab, local, tmp_path):
    # Half of the cube, and not the whole.
    limit = 12_000
    ds = lab.run("lab/tiny-llama", tmp_path / "run.zarr", overrides={"max_result": limit})
    assert ds.sizes["job"] > 2
    assert ds["job_bytes_down"].max() <= limit
    assert_equal(ds, local("lab/tiny-llama"))


def test_a_model_that_is_not_there(lab, tmp_path, monkeypatch):
    out = tmp_path / "run.zarr"
    with pytest.raises(ConfregError, match=r"lab/nothing"):
        lab.run("lab/nothing", out)
    # Known here, and not to the server.
    monkeypatch.setattr(client, "identify", lambda model, profile: model_key("lab/nothing"))
    with pytest.raises(ConfregError, match=r"cannot deploy lab/tiny-llama.*confreg doctor"):
        lab.run("lab/tiny-llama", out)
    assert len(effect_jobs(out)) == 1
    monkeypatch.undo()
    assert_complete(lab.run("lab/tiny-llama", out))


def test_a_run_stopped_between_units_of_neurons(lab, local, tmp_path, monkeypatch):
    # One unit of tokens: ablation values are found in the pass that measures the effects, and
    # those of the units before a stop are asked for again.
    monkeypatch.setattr(place, "UPLOAD", 100)
    monkeypatch.setattr(upload, "LEAST", 100)
    out, write = tmp_path / "run.zarr", Store.write_unit

    def once(store: Store, layout: Layout, spans: Spans, block: Block) -> None:
        if layout.step.title == "effects" and spans.at[0]:
            raise KeyboardInterrupt
        write(store, layout, spans, block)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_unit", once)
        with pytest.raises(KeyboardInterrupt):
            lab.run("lab/tiny-llama", out, overrides={"jobs_in_flight": 1})
    assert_equal(lab.run("lab/tiny-llama", out), local("lab/tiny-llama"))


EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="session")
def autoencoder(tmp_path_factory) -> str:
    """A file of a sparse autoencoder for a residual stream of 32."""
    draw, path = np.random.default_rng(0), tmp_path_factory.mktemp("sae") / "sae.safetensors"
    shapes = {"W_enc": (32, 12), "b_enc": (12,), "W_dec": (12, 32), "b_dec": (32,)}
    tables = {name: draw.normal(size=shape) for name, shape in shapes.items()}
    save_file({name: table.astype(np.float32) for name, table in tables.items()}, path)
    return str(path)


@pytest.mark.parametrize("sandbox", [False, True], ids=["trusted", "sandboxed"])
@pytest.mark.parametrize(
    ("example", "options"),
    [
        ("probability", {"neurons": "2:0-9"}),
        ("probability", {"neurons": "1:0-3"}),
        ("steering", {"direction": "1.3", "layer": 1}),
        ("latents", {}),
        ("latents", {"engine": "forward", "value": 0.5}),
        ("correlated_neurons", {"other": "lab/tiny-gpt2"}),
    ],
)
def test_the_examples(lab, local, tmp_path, autoencoder, example, options, sandbox):
    options = {"recipe": str(EXAMPLES / f"{example}.py"), **options}
    if example == "latents":
        options |= {"file": autoencoder}
    ds = lab.run("lab/tiny-llama", tmp_path / "run.zarr", overrides={"sandbox": sandbox}, **options)
    assert_equal(ds, local("lab/tiny-llama", **options))
    found = ds["correlation" if example == "correlated_neurons" else "effects"]
    assert np.abs(found).max() > 1e-3


@pytest.mark.parametrize("sandbox", [False, True], ids=["trusted", "sandboxed"])
@pytest.mark.parametrize(
    ("example", "options"),
    [
        ("probability", {"neurons": STRONG}),
        ("steering", {"direction": "29.1514", "layer": 28}),
    ],
)
def test_the_examples_on_a_real_model(lab, local, tmp_path, example, options, sandbox):
    options = {"recipe": str(EXAMPLES / f"{example}.py"), **SMOLLM2, **options}
    overrides = {"sandbox": sandbox}
    ds = lab.run("lab/smollm2-135m", tmp_path / "run.zarr", overrides=overrides, **options)
    assert_equal(ds, local("lab/smollm2-135m", **options))


@pytest.mark.parametrize("sandbox", [False, True], ids=["trusted", "sandboxed"])
@pytest.mark.parametrize("model", ["lab/tiny-gpt2", "lab/smollm2-135m"])
def test_weights_are_read_before_the_first_layer(lab, local, tmp_path, model, sandbox):
    last = "29" if "smollm2" in model else "2"
    options = {"neurons": f"{last}:0-7", "recipe": "token_frequency_neurons", "all_layers": True}
    options |= SMOLLM2 if "smollm2" in model else {}
    ds = lab.run(model, tmp_path / "run.zarr", overrides={"sandbox": sandbox}, **options)
    here = local(model, **options)
    for name in (
        "w_out_norm", "logit_var", "null_fraction", "singular_value", "frequency_cosine",
        "frequency_cosine_all",
    ):  # fmt: skip
        np.testing.assert_allclose(ds[name], here[name], atol=1e-5, rtol=1e-5, err_msg=name)
    assert int(ds["null_dims"]) == int(here["null_dims"])
    assert np.isfinite(ds["frequency_cosine_all"]).all()


@pytest.mark.parametrize("sandbox", [False, True], ids=["trusted", "sandboxed"])
@pytest.mark.parametrize("model", ["lab/tiny-gpt2", "lab/tiny-llama"])
def test_a_census_of_every_layer_and_of_directions(lab, local, tmp_path, model, sandbox):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((70, 32)))
    for number, directions in enumerate(("", str(tmp_path / "rows.npy"))):
        options = {"recipe": "census", "directions": directions}
        out = tmp_path / f"{number}.zarr"
        ds = lab.run(model, out, overrides={"sandbox": sandbox}, **options)
        here = local(model, **options)
        assert set(here.data_vars) <= set(ds.data_vars)
        for name in here.data_vars:
            if here[name].dtype.kind == "f":
                np.testing.assert_allclose(
                    ds[name], here[name], atol=1e-5, rtol=2e-5, err_msg=str(name)
                )
        np.testing.assert_array_equal(ds["raised"], here["raised"])


def test_an_example_killed_in_each_of_its_steps_ends_with_the_same_bytes(lab, tmp_path):
    example, out = str(EXAMPLES / "steering.py"), tmp_path / "run.zarr"
    options = "-p", "direction=1.3", "-p", "layer=1"
    for step in ("_output_weight:", "_effects:"):
        process = start(lab, example, out, *options)
        try:
            wait_for(
                lambda step=step: any(
                    step in r["key"] and r["event"] == "submitted" for r in records(out)
                )
            )
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert process.returncode == -signal.SIGKILL
    resumed = start(lab, example, out, *options)
    assert resumed.communicate(timeout=PATIENCE)[1] == ""
    # Two jobs for two steps, or a unit each: none was paid for twice.
    keys = [r["key"] for r in records(out) if r["event"] == "submitted"]
    assert len(keys) == len(set(keys))

    def content() -> dict[str, str]:
        assert confreg.open(out).attrs["complete"]
        return {k: v for k, v in digest(out).items() if not k.startswith(("job_", "work/seal/c"))}

    disturbed = content()
    shutil.rmtree(out)
    journal_path(out).unlink()
    whole = start(lab, example, out, *options)
    assert whole.communicate(timeout=PATIENCE)[1] == ""
    assert content() == disturbed


# The module of effects is named in the trace: all of it travels.
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


@pytest.mark.parametrize("sandbox", [False, True], ids=["trusted", "sandboxed"])
def test_a_trace_may_name_the_module_of_effects(lab, local, tmp_path, sandbox):
    file = tmp_path / "room.py"
    file.write_text(ROOM)
    out, overrides = tmp_path / "run.zarr", {"sandbox": sandbox}
    ds = lab.run("lab/tiny-llama", out, str(file), overrides=overrides)
    assert np.abs(ds["total"]).max() > 0.1
    assert_equal(ds, local("lab/tiny-llama", recipe=str(file)))


# What a user's own recipe can get wrong on a server, by its place in the recipe.
BROKEN = '''
"""A recipe that fails where it is told to."""

import nnsight
import torch

from confreg import Axis, recipe, steps
from confreg import effects as fx


def of(logits, targets):
    return missing(targets)  # in the measure


BAD = fx.Measure("bad", "1", "a measure that fails", of=of)


class Edits:
    def __init__(self, numbers, fails):
        self.numbers, self.fails = numbers, fails

    def __len__(self):
        return len(self.numbers)

    def apply(self, tensor, copies):
        if self.fails:
            raise KeyError("no such thing")  # in the edit
        return tensor


@recipe(effects=(fx.loss.total,), on_request=(BAD.total,))
def broken(study, *, where: str = "edit"):
    def entries(start, stop):
        return Edits([0] * (stop - start), where == "edit")

    axis = Axis.of("number", [0, 1], "number", entries=entries)
    trace = in_trace if where == "trace" else fine
    effects = (BAD.total,) if where == "measure" else (fx.loss.total,)
    return steps.ablation(study, trace, axis, study.tokens(), effects=effects)


def fine(model, unit):
    site = model.site(unit.layer)

    with model.trace(unit.inputs):
        residual = site.residual.input
        site.residual.input = unit.edits.apply(residual, unit.copies)
        block = site.measure(unit, residual)
        nnsight.save(block)

    return block


def in_trace(model, unit):
    site = model.site(unit.layer)

    with model.trace(unit.inputs):
        residual = site.residual.input
        residual @ torch.zeros(3, 4)  # in the trace
        block = site.measure(unit, residual)
        nnsight.save(block)

    return block
'''


@pytest.mark.parametrize("sandbox", [False, True], ids=["trusted", "sandboxed"])
@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("measure", "NameError: name 'missing' is not defined"),
        ("edit", "KeyError: 'no such thing'"),
        ("trace", "RuntimeError: "),
    ],
)
def test_an_error_of_a_users_own_is_a_sentence_with_its_line(lab, tmp_path, where, said, sandbox):
    file = tmp_path / "broken.py"
    file.write_text(BROKEN)
    (line,) = [
        n for n, text in enumerate(BROKEN.splitlines(), 1) if text.endswith(f"# in the {where}")
    ]
    options = "-p", f"where={where}", "-P", f"sandbox={str(sandbox).lower()}"
    process = start(lab, str(file), tmp_path / "run.zarr", *options)
    told = process.communicate(timeout=PATIENCE)[1].strip()
    assert process.returncode == 2
    assert len(told.splitlines()) == 1, told
    assert told.startswith(f"confreg: {file}, line {line}: {said}"), told
    process = start(lab, str(file), tmp_path / "run.zarr", *options, "--debug")
    told = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 1
    assert "Traceback" in told
    assert said in told


def test_a_recipe_of_ones_own_with_a_helper_module(lab, local, tmp_path, recipe):
    options = {"recipe": recipe, "seconds": 0.1}
    ds = lab.run("lab/tiny-llama", tmp_path / "run.zarr", **options)
    whole = local("lab/tiny-llama", engine="auto")
    np.testing.assert_allclose(ds["te"], whole["te"], atol=1e-6)


def start(
    lab: Lab, recipe: str, out: Path, *more: str, quiet: bool = True
) -> subprocess.Popen[str]:
    """The same run in a process of its own, four slow units, two in flight."""
    text = out.with_suffix(".txt")
    text.write_text("\n".join(TEXT))
    command = [
        *(sys.executable, "-m", "confreg.cli", "run", recipe, "--model", "lab/tiny-llama"),
        *("--text", str(text), "--out", str(out), "--profile", lab.profile, "--dtype", "float32"),
        *("--sequence-length", "16", "--max-tokens", "64", "--memory", "120000"),
        *("-P", "jobs_in_flight=2", *more, *["--quiet"] * quiet),
    ]
    environment = os.environ | {
        "HF_ENDPOINT": lab.hub.url,
        "HF_HOME": str(lab.folder / "client-home"),
    }
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def records(out: Path) -> list[dict]:
    """What the journal of a store says."""
    lines = journal_path(out).read_text().splitlines() if journal_path(out).exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def effect_jobs(out: Path) -> list[str]:
    """Jobs of units of effects that the journal knows."""
    submitted = [r for r in records(out) if r["event"] == "submitted"]
    return [r["job"] for r in submitted if "_ablation_values:" not in r["key"]]


def test_a_killed_client_collects_what_it_paid_for(lab, tmp_path, recipe):
    out = tmp_path / "run.zarr"
    process = start(lab, recipe, out)
    try:
        wait_for(lambda: len(effect_jobs(out)) == 2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    killed = effect_jobs(out)
    # In the meantime the server finishes both.
    wait_for(lambda: all(lab.state(job) == "COMPLETED" for job in killed))
    resumed = start(lab, recipe, out)
    assert resumed.communicate(timeout=PATIENCE)[1] == ""
    assert resumed.returncode == 0
    # Four jobs for four units: the two that were under way were not paid for again.
    assert effect_jobs(out)[:2] == killed
    assert len(effect_jobs(out)) == 4
    resumed_data = confreg.open(out).load()
    assert set(killed) < set(resumed_data["job_id"].values)

    shutil.rmtree(out)
    journal_path(out).unlink()
    whole = start(lab, recipe, out)
    assert whole.communicate(timeout=PATIENCE)[1] == ""
    undisturbed = confreg.open(out).load()
    jobs = [n for n in undisturbed.variables if str(n).startswith("job_")]
    xr.testing.assert_identical(resumed_data.drop_vars(jobs), undisturbed.drop_vars(jobs))


@pytest.mark.parametrize("fault", ["actor", "api", "redis"])
def test_a_part_of_the_server_is_killed_during_a_job(lab, local, tmp_path, recipe, fault):
    out = tmp_path / "run.zarr"
    found: list[xr.Dataset] = []

    def run() -> None:
        options = {"seconds": 4.0, "overrides": {"retries": 12}}
        found.append(lab.run("lab/tiny-llama", out, recipe, **options))

    runner = threading.Thread(target=run)
    runner.start()
    wait_for(lambda: effect_jobs(out) and lab.state(effect_jobs(out)[0]) == "RUNNING")
    if fault == "actor":
        (actor,) = lab.actors()
        actor.kill()
    else:
        pid = lab.parts()[fault]
        os.kill(pid, signal.SIGTERM if fault == "api" else signal.SIGKILL)
        wait_for(lambda: lab.parts()[fault] != pid)  # the supervisor starts it again
    runner.join(PATIENCE)
    (ds,) = found
    np.testing.assert_allclose(ds["te"], local("lab/tiny-llama")["te"], atol=1e-6)
    # An actor's job dies with it, and may be given up with the queue; the API is but a door.
    submissions = sum(record["event"] == "submitted" for record in records(out))
    assert {"actor": submissions > 1, "api": submissions == 1, "redis": submissions >= 1}[fault]
    wait_for(lab.healthy)


def test_jobs_that_die_with_the_dispatcher_are_submitted_again(lab, local, tmp_path, recipe):
    out = tmp_path / "run.zarr"
    options = "-p", "seconds=4", "-P", "retries=12"
    process = start(lab, recipe, out, *options, quiet=False)
    # One runs, and the dispatcher holds the other.
    wait_for(lambda: [lab.state(job) for job in effect_jobs(out)] == ["RUNNING", "QUEUED"])
    os.kill(lab.parts()["dispatcher"], signal.SIGKILL)
    began = time.monotonic()
    said = " ".join(process.communicate(timeout=PATIENCE)[1].split())
    assert process.returncode == 0, said
    assert time.monotonic() - began < 300
    lost = [r["job"] for r in records(out) if r["event"] == "doubted"]
    assert lost
    assert all(f"seems to have lost job {job}" in said for job in lost)
    assert "the first result counts" in said
    disturbed = confreg.open(out).load()
    assert_complete(disturbed)
    assert len(set(disturbed["job_id"].values)) == disturbed.sizes["job"]

    shutil.rmtree(out)
    journal_path(out).unlink()
    again = start(lab, recipe, out, *options, quiet=False)
    assert "lost" not in again.communicate(timeout=PATIENCE)[1]
    undisturbed = confreg.open(out).load()
    jobs = [n for n in undisturbed.variables if str(n).startswith("job_")]
    xr.testing.assert_identical(disturbed.drop_vars(jobs), undisturbed.drop_vars(jobs))
    wait_for(lab.healthy)


def test_ctrl_c_keeps_the_journal_and_says_how_to_go_on(lab, tmp_path, recipe):
    out = tmp_path / "run.zarr"
    process = start(lab, recipe, out, "-p", "seconds=2")
    wait_for(lambda: len(effect_jobs(out)) == 2)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=PATIENCE)[1]
    assert time.monotonic() - began < 30
    assert process.returncode == 130
    assert "the same command" in said
    assert "Traceback" not in said
    interrupted = effect_jobs(out)
    assert len(interrupted) == 2  # nothing more was submitted
    again = start(lab, recipe, out, "-p", "seconds=2")
    assert again.communicate(timeout=PATIENCE)[1] == ""
    assert again.returncode == 0
    assert effect_jobs(out)[:2] == interrupted
    assert len(effect_jobs(out)) == 4


def test_a_deadline_ends_in_one_sentence_and_a_store_that_resumes(lab, tmp_path, recipe):
    out = tmp_path / "run.zarr"
    process = start(lab, recipe, out, "-P", "deadline=0.5", "-p", "seconds=3")
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 2
    assert len(said.strip().splitlines()) == 1
    assert "did not end within the deadline" in said
    again = start(lab, recipe, out, "-p", "seconds=3")
    assert again.communicate(timeout=PATIENCE)[1] == ""
    assert again.returncode == 0
