"""One writer a store."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import confreg
from confreg.sweep.lock import writing


def test_a_second_writer_is_told_who_writes(tmp_path):
    path = tmp_path / "o.zarr"
    with writing(path):
        said = pytest.raises(confreg.ConfregError, match=f"process {os.getpid()}.* is writing")
        with said, writing(path):
            pass
        with writing(tmp_path / "other.zarr"):
            pass
    with writing(path):  # and again, once the first has let go
        pass


def test_a_killed_writer_lets_go(tmp_path):
    path = tmp_path / "o.zarr"
    code = f"""
import os, signal
from pathlib import Path
from confreg.sweep.lock import writing
with writing(Path({str(path)!r})):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode < 0
    with writing(path):
        pass


def test_of_runs_at_once_one_writes_and_the_store_is_whole(checkpoint, words, tmp_path):
    out, text = tmp_path / "o.zarr", tmp_path / "text.txt"
    text.write_text("\n".join(words))
    line = [
        sys.executable, "-m", "confreg.cli", "run", "entropy_neurons",
        "--model", str(checkpoint("llama")), "--text", str(text), "--out", str(out),
        "--neurons", "2:0-5", "--sequence-length", "16", "--max-tokens", "64", "--quiet",
    ]  # fmt: skip
    runs = [subprocess.Popen(line, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for run in runs:
        _, said = run.communicate(timeout=240)
        # Whoever was refused was refused for the other's sake.
        assert run.returncode == 0 or (run.returncode == 2 and "Another run" in said), said
    ds = confreg.open(out)
    assert ds.attrs["complete"] == 1
    assert ds["te"].notnull().all()
    assert "token_id" in ds.coords
