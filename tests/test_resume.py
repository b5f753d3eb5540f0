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

import pytest
import zarr

import confreg
from confreg.results import store

# Small units, so that there is much to interrupt, and slow ones, so that a kill lands within.
SLOW = """
import sys, time
from confreg.execution import plan
from confreg.results.store import Store
plan.UNIT_TOKENS, plan.FORWARD_NEURONS = 16, 4
write = Store.write_unit
def slowly(self, *unit):
    time.sleep(0.02)
    write(self, *unit)
Store.write_unit = slowly
from confreg.cli import main
main(sys.argv[1:])
"""


def command(model: Path, text: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-c", SLOW, "run", "entropy_neurons", "--model", str(model),
        "--text", str(text), "--out", str(out), "--sequence-length", "16", "--max-tokens", "160",
        "--quiet", "--activations", *more,
    ]  # fmt: skip


def digest(path: Path) -> dict[str, str]:
    files = sorted(f for f in path.rglob("*") if f.is_file())
    return {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture
def text(tmp_path, words):
    (tmp_path / "text.txt").write_text("\n".join(words))
    return tmp_path / "text.txt"


def test_sigkill_at_random_moments(checkpoint, tmp_path, text):
    model, out = checkpoint("llama"), tmp_path / "run.zarr"
    more = ("--neurons", "1:0-3,2:0-11")  # both engines in one store
    # The command line is part of the store: the same path, one run after the other.
    started = time.monotonic()
    subprocess.run(command(model, text, out, *more), check=True)
    took = time.monotonic() - started
    whole = digest(out)
    out.rename(tmp_path / "whole.zarr")

    draw, kills = random.Random(0), 0
    while kills < 3 or not zarr.open_group(out, mode="r").attrs["complete"]:
        process = subprocess.Popen(command(model, text, out, *more))
        # The first kills fall anywhere; after a few the run may end.
        patience = took * draw.uniform(0.5, 1.0) if kills < 3 else None
        try:
            assert process.wait(patience) == 0
            if kills < 3:  # a faster moment of the machine: it must be killed in its course
                shutil.rmtree(out)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills == 3
    assert digest(out) == whole


def test_ctrl_c_leaves_a_store_that_resumes(checkpoint, tmp_path, text):
    out = tmp_path / "run.zarr"
    line = command(checkpoint("llama"), text, out, "--neurons", "2:0-11", "--engine", "forward")
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    while not (out / "work" / "done" / "c").exists():
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
    from confreg.execution import run

    small(checkpoint, words, tmp_path / "a.zarr")
    monkeypatch.setattr(run, "execute", None)
    small(checkpoint, words, tmp_path / "a.zarr")


def test_a_truncated_chunk_is_a_sentence_and_is_mended(checkpoint, words, tmp_path, capfd):
    out = tmp_path / "a.zarr"
    small(checkpoint, words, out)
    before = digest(out)
    chunk = next(f for f in (out / "effects" / "c").rglob("*") if f.is_file())
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(confreg.ConfregError, match="store is damaged"), store.reading(out):
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
