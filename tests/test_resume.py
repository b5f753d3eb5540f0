"""A run that is killed and started again ends with the bytes of one that was not."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

import confreg
from confreg.results.open import reading
from confreg.sweep import store

# Slow units, so that a kill lands among them.
SLOW = """
import sys, time
from confreg.sweep.store import Store
write = Store.write_unit
def slowly(self, *unit):
    time.sleep(0.02)
    write(self, *unit)
Store.write_unit = slowly
from confreg.cli import main
main(sys.argv[1:])
"""

# Variables added over tokens, in both precisions, beside one that has them, and one of a later
# step that has to wait for the sums.
SUMS = """
import nnsight
import torch

from confreg import Derivation, Step, Variable, recipe
from confreg.effects import pick


@recipe()
def sums(study):
    tokens, mine = study.tokens(), study.neurons()
    partners = study.neurons(name="partner")

    def unit(spans, stored):
        return (
            tokens.entries(*spans.bounds["token"]), int(mine.layer[0]),
            mine.entries(*spans.bounds["neuron"]).index, partners.entries(0, len(partners)).index,
        )

    added = {"added_over": ("token",)}
    largest = Variable("largest", ("neuron",), "largest", largest_over=("token",))
    first = Step(moments, over=(mine, tokens), along=(partners,), unit=unit, gives=(
        Variable("values", ("neuron", "token"), "activation"),
        Variable("product", ("neuron", "partner"), "products", dtype="float64", **added),
        Variable("total", ("neuron",), "sum", **added),
        largest,
    ))

    def scaled(spans, stored):
        start, stop = spans.bounds["neuron"]
        return (*unit(spans, stored), torch.from_numpy(stored["total"][start:stop]))

    second = Step(against, over=(mine, tokens), unit=scaled, needs=(first,), gives=(
        Variable("scaled", ("neuron",), "sum of squares less the sum", **added),
    ))
    share = Derivation(
        lambda ds: {"share": ds["scaled"] / ds["product"].sum("partner")}, by="neuron",
        gives=(Variable("share", ("neuron",), "share"),),
    )
    return [first, second, share]


def activations(model, tokens, layer, index):
    site = model.site(layer)
    with model.trace(tokens.inputs) as tracer:
        seen = nnsight.save(pick(site.neurons.input, tokens.positions, index).cpu())
        tracer.stop()
    return seen


def moments(model, unit):
    tokens, layer, index, partners = unit
    mine = activations(model, tokens, layer, index)
    theirs = activations(model, tokens, layer, partners)
    return {
        "values": mine.T, "product": mine.double().T @ theirs.double(), "total": mine.sum(0),
        "largest": mine.amax(0),
    }


def against(model, unit):
    tokens, layer, index, _, total = unit
    mine = activations(model, tokens, layer, index)
    return {"scaled": (mine.square() - total).sum(0)}
"""

SMALL = ("--sequence-length", "16", "--unit-tokens", "16", "--unit-copies", "4", "--quiet")


def command(recipe: str, model: Path, text: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-c", SLOW, "run", recipe, "--model", str(model), "--text", str(text),
        "--out", str(out), *SMALL, *more,
    ]  # fmt: skip


def digest(path: Path) -> dict[str, str]:
    files = sorted(f for f in path.rglob("*") if f.is_file())
    return {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture
def text(tmp_path, words):
    (tmp_path / "text.txt").write_text("\n".join(words))
    return tmp_path / "text.txt"


def units(out: Path) -> int:
    """How many units are marked as done."""
    return sum(1 for file in out.glob("work/*/done/c/**/*") if file.is_file())


def written(process: subprocess.Popen, out: Path, before: int) -> bool:
    """Wait until one more unit is done than before; False if the process ends first."""
    while process.poll() is None:
        if units(out) > before:
            return True
        time.sleep(0.005)
    return False


def killed(line: list[str], out: Path, times: int = 3) -> dict[str, str]:
    """Check that a run that is killed ``times`` times ends with the bytes of one that is not."""
    # The command line is part of the store: the same path, one run after the other.
    process = subprocess.Popen(line)
    assert written(process, out, 0)
    begun = time.monotonic()
    assert process.wait() == 0
    took = time.monotonic() - begun
    whole = digest(out)
    out.rename(out.with_name("whole.zarr"))

    draw, kills = random.Random(0), 0
    while kills < times:
        before = units(out)
        process = subprocess.Popen(line)
        if written(process, out, before):
            time.sleep(took * draw.uniform(0, 1 / times))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if zarr.open_group(out, mode="r").attrs["complete"]:
            shutil.rmtree(out)  # a faster moment of the machine: it must be killed in its course
        else:
            kills += 1
    subprocess.run(line, check=True)
    assert digest(out) == whole
    return whole


@pytest.mark.slow
def test_sigkill_at_random_moments(checkpoint, tmp_path, text):
    out = tmp_path / "run.zarr"
    # Both engines in one store.
    more = ("--neurons", "1:0-3,2:0-11", "--activations", "--max-tokens", "160")
    killed(command("entropy_neurons", checkpoint("llama"), text, out, *more), out)


@pytest.mark.slow
def test_sigkill_where_variables_are_added_over_tokens(checkpoint, tmp_path, text):
    (tmp_path / "sums.py").write_text(SUMS)
    out = tmp_path / "run.zarr"
    more = ("--neurons", "2:0-11", "--max-tokens", "160")
    whole = killed(command(str(tmp_path / "sums.py"), checkpoint("llama"), text, out, *more), out)
    assert any("product" in name and name.startswith("work/00_moments/") for name in whole)
    ds = confreg.open(out).load()
    values = ds["values"].values.astype(np.float64)
    np.testing.assert_allclose(ds["product"], values @ values.T, rtol=1e-6)
    np.testing.assert_allclose(ds["total"], values.sum(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ds["largest"], ds["values"].max("token"))
    scaled = (values**2 - ds["total"].values[:, None]).sum(1)
    np.testing.assert_allclose(ds["scaled"], scaled, rtol=1e-4)


@pytest.mark.slow
def test_sigkill_where_an_axis_is_known_later(checkpoint, tmp_path, text):
    out = tmp_path / "run.zarr"
    more = (
        "--neurons", "2:0-3", "--max-tokens", "120", "-p", "heads=top:2", "-p", "random_sets=3",
        "-p", "length=6", "-p", "score_sequences=24", "-p", "score_length=20",
    )  # fmt: skip
    killed(command("bos_ablation", checkpoint("llama"), text, out, *more), out)
    ds = confreg.open(out)
    scores = ds["prefix_score"].values
    chosen = ds["set_heads"].values[ds["set_kind"].values == "chosen"].tolist()
    layers, heads = np.unravel_index(scores.ravel().argsort()[::-1][:2], scores.shape)
    assert set(chosen) >= {f"{layer}.{head}" for layer, head in zip(layers, heads)}


def test_ctrl_c_leaves_a_store_that_resumes(checkpoint, tmp_path, text):
    out = tmp_path / "run.zarr"
    more = ("--neurons", "2:0-11", "--engine", "forward", "--max-tokens", "160", "--activations")
    line = command("entropy_neurons", checkpoint("llama"), text, out, *more)
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("work/*_effects/done/c")):
        time.sleep(0.02)
        assert process.poll() is None, process.stderr.read()
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    subprocess.run(line, check=True)
    assert confreg.open(out).attrs["complete"] == 1


def small(checkpoint, words, out, **options):
    options = {"neurons": "2:0-5", **options}
    return confreg.run(
        "entropy_neurons", model=str(checkpoint("llama")), text=words, out=out,
        sequence_length=16, max_tokens=64, progress=False, **options,
    )  # fmt: skip


def test_another_configuration_is_refused_by_name(checkpoint, words, tmp_path):
    out = tmp_path / "a.zarr"
    small(checkpoint, words, out)
    before = digest(out)
    with pytest.raises(confreg.ConfregError, match=r"seed: 0 there, 1 now.*--overwrite"):
        small(checkpoint, words, out, seed=1)
    with pytest.raises(confreg.ConfregError, match="neurons: '2:0-5' there, '2:0-6' now"):
        small(checkpoint, words, out, neurons="2:0-6")
    assert digest(out) == before
    small(checkpoint, words, out, seed=1, overwrite=True)
    assert confreg.open(out).attrs["seed"] == 1


def test_a_finished_run_is_not_run_again(checkpoint, words, tmp_path, monkeypatch):
    from confreg.places import Here

    small(checkpoint, words, tmp_path / "a.zarr")
    before = digest(tmp_path / "a.zarr")
    monkeypatch.setattr(Here, "load", None)
    monkeypatch.setattr(store.Store, "finish", None)
    small(checkpoint, words, tmp_path / "a.zarr")
    assert digest(tmp_path / "a.zarr") == before


def test_a_truncated_chunk_is_a_sentence_and_is_mended(checkpoint, words, tmp_path, capfd):
    out = tmp_path / "a.zarr"
    small(checkpoint, words, out)
    before = digest(out)
    chunk = next(f for f in (out / "effects" / "c").rglob("*") if f.is_file())
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(confreg.ConfregError, match="store is damaged"), reading(out):
        confreg.open(out).load()
    small(checkpoint, words, out)
    assert digest(out) == before


def test_a_folder_that_is_no_store_is_left_alone(checkpoint, words, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(confreg.ConfregError, match="not a confreg store"):
            small(checkpoint, words, tmp_path / "thesis", overwrite=overwrite)
    with pytest.raises(confreg.ConfregError, match="not a confreg store"):
        confreg.open(tmp_path / "thesis")
    with pytest.raises(confreg.ConfregError, match="There is no store"):
        confreg.open(tmp_path / "nothing.zarr")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "mine"


def test_another_schema_is_a_sentence(checkpoint, words, tmp_path):
    out = tmp_path / "a.zarr"
    small(checkpoint, words, out)
    zarr.open_group(out, mode="r+").attrs[store.SCHEMA_ATTRIBUTE] = "9.0"
    with pytest.raises(confreg.ConfregError, match=r"has schema 9.0; this confreg reads"):
        confreg.open(out)
    with pytest.raises(confreg.ConfregError, match=r"has schema 9.0"):
        small(checkpoint, words, out)


def test_a_truncated_variable_is_mended_too(checkpoint, words, tmp_path):
    out = tmp_path / "a.zarr"
    small(checkpoint, words, out)
    before = digest(out)
    for name in ("w_out_norm", "te"):
        (out / name / "c" / "0").write_bytes(b"")
    small(checkpoint, words, out)
    assert digest(out) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_a_sentence_and_the_run_resumes(checkpoint, words, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine does not let a test mount a small disk")
    try:
        with pytest.raises(confreg.ConfregError, match=r"disk of .* is full"):
            small(checkpoint, words, disk / "a.zarr", neurons="all", activations=True)
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        ds = small(checkpoint, words, disk / "a.zarr", neurons="all", activations=True)
        assert ds.attrs["complete"] == 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", ["effects", "te", "token_text"])
def test_a_lost_chunk_is_said_when_a_store_is_opened_and_is_mended(
    checkpoint, words, tmp_path, name
):
    out = tmp_path / "a.zarr"
    small(checkpoint, words, out)
    before = digest(out)
    next(file for file in (out / name / "c").rglob("*") if file.is_file()).unlink()
    with pytest.raises(confreg.ConfregError, match=f"chunks of '{name}' are missing"):
        confreg.open(out)
    small(checkpoint, words, out)
    assert digest(out) == before
