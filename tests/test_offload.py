"""A run whose weights stay on disk gives the dataset of the run in memory."""

from __future__ import annotations

import numpy as np
import pytest

import confreg
from benchmarks.checkpoints import Shape, write
from confreg.errors import ConfregError

# 350 million parameters, nearly all of them in layers, so that nearly all can stay on disk.
SHAPE = Shape(layers=12, width=1024, neurons=8192, heads=16, vocab=2000)
CHOICE = {"max_tokens": 32, "sequence_length": 16, "neurons": "11:0-255", "dtype": "float32"}
OFFLOAD = {"profile": "offload", "overrides": {"max_memory.cpu": "300MB"}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    assert write(folder, SHAPE) == 2 * SHAPE.parameters
    return str(folder)


@pytest.mark.slow
def test_offloaded_run_equals_the_run_in_memory(checkpoint, tmp_path):
    plan = confreg.plan("entropy_neurons", model=checkpoint, **CHOICE, **OFFLOAD)
    layout = plan.place.profile.placement().plan(plan.place.model.about)
    assert layout.read_per_pass > 0.8 * 2 * SHAPE.parameters
    runs = {"memory": {"profile": "memory"}, "offload": OFFLOAD}
    found = {
        name: confreg.run(
            "entropy_neurons",
            model=checkpoint,
            out=tmp_path / f"{name}.zarr",
            progress=False,
            **CHOICE,
            **where,
        ).load()
        for name, where in runs.items()
    }
    inside, outside = found["memory"], found["offload"]
    assert float(np.abs(inside["effects"]).max()) > 1e-3
    np.testing.assert_allclose(outside["effects"], inside["effects"], rtol=0, atol=1e-5)
    for name in ("w_out_norm", "logit_var", "null_fraction", "te", "de", "loss", "entropy"):
        np.testing.assert_allclose(outside[name], inside[name], rtol=1e-4, atol=1e-5)


def test_a_checkpoint_that_does_not_fit_the_disk_is_refused(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10**9})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(ConfregError, match=r"1\.0 GB free"):
        write(tmp_path / "model", Shape(32, 4096, 11008, 32, 32000))
    assert not any((tmp_path / "model").iterdir())
