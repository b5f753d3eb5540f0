"""A dataset that is open keeps its numbers, or says that its store is not there any more."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
import xarray as xr

import confreg
from confreg import ConfregError, cli


@pytest.fixture
def run(checkpoint, words, tmp_path):
    def go(**options):
        given = {"out": tmp_path / "a.zarr", "neurons": "2:0-3", **options}
        return confreg.run(
            "entropy_neurons", model=str(checkpoint("llama")), text=words, sequence_length=16,
            max_tokens=64, progress=False, **given,
        )  # fmt: skip

    return go


def test_a_store_that_is_replaced_is_said(run):
    first, loaded = run(), run().load()
    second = run(neurons="2:4-7", ablation="zero", overwrite=True)
    with pytest.raises(ConfregError, match="replaced by another run since it was opened"):
        first["te"].values  # noqa: B018
    assert not np.array_equal(loaded["te"], second["te"])
    assert loaded["neuron"].values.tolist() != second["neuron"].values.tolist()


def test_a_store_that_moves_is_said(run, tmp_path):
    first = run()
    shutil.move(tmp_path / "a.zarr", tmp_path / "b.zarr")
    with pytest.raises(ConfregError, match="moved or deleted since it was opened"):
        first["te"].values  # noqa: B018
    assert np.isfinite(confreg.open(tmp_path / "b.zarr")["te"]).all()


def test_a_store_that_is_made_again_by_the_same_configuration_reads_on(run):
    first = run()
    again = run(overwrite=True)
    np.testing.assert_array_equal(first["te"], again["te"])


def test_an_open_dataset_travels(run):
    first = run()
    again = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(again["te"], first["te"])


def test_a_copy_of_a_dataset_is_no_store_to_go_on_with(run, tmp_path):
    run().load().to_zarr(tmp_path / "copy.zarr", consolidated=False)
    assert np.isfinite(confreg.open(tmp_path / "copy.zarr")["te"]).all()
    with pytest.raises(ConfregError, match="it is a copy of a dataset"):
        run(out=tmp_path / "copy.zarr")


def test_an_empty_folder_is_written_into(run, tmp_path):
    (tmp_path / "empty.zarr").mkdir()
    assert run(out=tmp_path / "empty.zarr").attrs["complete"]


def test_a_run_that_failed_before_it_measured_does_not_stand_in_the_way(run, tmp_path, monkeypatch):
    from confreg.sweep.store import Store

    def fails(self, *given):
        raise RuntimeError("no unit is ever written")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_unit", fails)
        with pytest.raises(RuntimeError):
            run()
    assert (tmp_path / "a.zarr").is_dir()
    assert run(neurons="2:4-7").sizes["neuron"] == 4
    with pytest.raises(ConfregError, match="another configuration"):
        run(neurons="2:0-3")


def test_netcdf_of_a_run_that_is_not_finished_is_refused(run, tmp_path, capsys):
    import zarr

    run()
    zarr.open_group(tmp_path / "a.zarr", mode="r+").attrs["complete"] = 0
    with pytest.raises(SystemExit) as stopped:
        cli.main(["netcdf", str(tmp_path / "a.zarr")])
    assert stopped.value.code == 2
    assert "not finished" in capsys.readouterr().err
    assert not (tmp_path / "a.nc").exists()


def test_the_check_of_a_small_run_is_in_proportion(run):
    ds = run(neurons="2.1", engine="series").load()
    kept = int(ds["keep"].sum())
    assert 1 <= ds.attrs["error_sampled_pairs"] <= max(1, kept // 8)
    assert isinstance(ds, xr.Dataset)
