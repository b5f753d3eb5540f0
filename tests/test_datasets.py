"""Datasets keep the conventions of their world, and those of older versions still open."""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

import confreg
from confreg import cli

SCHEMA1 = Path(__file__).parent / "data" / "schema1.zip"
SMALL = {"sequence_length": 16, "max_tokens": 64, "progress": False, "neurons": "2:0-5"}
RECIPES = {
    "entropy_neurons": {"activations": True, "effects": ["all"]},
    "token_frequency_neurons": {},
    "group_ablation": {"neurons": "2.0,2.1", "random_sets": 3},
    "bos_ablation": {
        "length": 6,
        "heads": "top:1",
        "random_sets": 2,
        "score_sequences": 4,
        "score_length": 10,
    },
}


@pytest.fixture(scope="module", params=RECIPES)
def path(request, checkpoint, words, tmp_path_factory):
    out = tmp_path_factory.mktemp("dataset") / f"{request.param}.zarr"
    options = {**SMALL, **RECIPES[request.param]}
    confreg.run(request.param, model=str(checkpoint("llama")), text=words, out=out, **options)
    return out


def test_xarray_opens_it_without_a_warning(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = xr.open_zarr(path, chunks=None).load()
    mine = confreg.open(path).load()
    assert set(ds.variables) == set(mine.variables)
    assert set(ds.coords) == set(mine.coords)
    for name in ds.data_vars:
        np.testing.assert_array_equal(ds[name].values, mine[name].values)


def test_xarray_opens_it_as_a_tree(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xr.open_datatree(path, engine="zarr", chunks=None)
    assert set(tree.dataset.data_vars) == set(confreg.open(path).data_vars)
    assert tree["work"].children


def test_every_array_has_dimension_names(path):
    root, found = zarr.open_group(path, mode="r", use_consolidated=False), 0
    for name, array in root.members(max_depth=None):
        if isinstance(array, zarr.Array):
            found += 1
            names = array.metadata.dimension_names
            assert array.ndim == 0 or names is not None, name
            assert len(names or ()) == array.ndim, name
            assert all(names or ()), name
    assert found > 20


def test_metadata_are_consolidated(path):
    held = json.loads((path / "zarr.json").read_text())["consolidated_metadata"]["metadata"]
    root = zarr.open_group(path, mode="r", use_consolidated=False)
    assert list(held) == sorted(name for name, _ in root.members(max_depth=None))


def test_root_attributes_say_where_it_comes_from(path):
    attrs = xr.open_zarr(path, chunks=None).attrs
    assert attrs["Conventions"].startswith("CF-")
    assert "2406.16254" in attrs["references"]
    assert attrs["creation_library"] == "confreg"
    assert attrs["creation_library_version"] == confreg.__version__
    source = Path(__file__).parent.parent / "recipes" / f"{attrs['recipe']}.py"
    assert attrs["recipe_text"] == source.read_text()
    assert attrs["title"].startswith(f"{attrs['recipe']}: ")
    assert not any(isinstance(value, (list, dict, bool)) for value in attrs.values())


def test_effects_say_of_what_they_are_and_by_which_pathway(path):
    ds = confreg.open(path)
    pathways = {"total", "direct", "frequency_direct"}
    for effect in ds["effect"]:
        quantity, pathway = effect["quantity"].item(), effect["pathway"].item()
        assert pathway in pathways
        assert effect.item() in (f"{quantity}_{pathway}", quantity)
    total = ds["effect_mean"].set_xindex("quantity").sel(quantity="loss")
    assert set(total["pathway"].values) > {"total"}


def test_everything_that_is_measured_has_a_long_name_and_a_unit_or_is_a_label(path):
    ds = confreg.open(path)
    for name, variable in ds.variables.items():
        assert variable.attrs["long_name"], name
        if variable.dtype.kind == "f" and name in ds.data_vars:
            assert variable.attrs["units"], name


@pytest.fixture
def old(tmp_path):
    """A store that version 0.1 wrote."""
    zipfile.ZipFile(SCHEMA1).extractall(tmp_path)
    return tmp_path / "schema1.zarr"


def test_a_store_of_schema_1_opens(old):
    ds = confreg.open(old).load()
    assert ds.attrs["confreg_schema"] == "1.0"
    assert ds["effects"].dims == ("neuron", "token", "effect")
    assert ds["effects"].shape == (6, 40, 4)
    expected = [0.01881389, 0.03999231, 0.01267053, 0.00788886, 0.02364273, 0.13065022]
    np.testing.assert_allclose(ds["te"], expected, rtol=1e-6)
    keep = ds["keep"].values
    te = np.abs(ds["effects"].sel(effect="loss_total").values[:, keep]).mean(1)
    np.testing.assert_allclose(ds["te"], te, rtol=1e-5)
    assert ds.confreg.top("te", 1).index[0] == "2.5"
    assert ds.confreg.neuron("2.5")["neuron"].item() == "2.5"


def test_a_store_of_schema_1_is_shown(old, capsys):
    cli.main(["show", str(old)])
    assert "6 of 6 neurons" in capsys.readouterr().out
    cli.main(["report", str(old), "-o", str(old.with_name("page.html"))])
    page = old.with_name("page.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "2.5" in page
    cli.main(["netcdf", str(old), "-o", str(old.with_name("a.nc"))])
    xr.testing.assert_identical(
        confreg.open(old).load(), confreg.open(old.with_name("a.nc")).load()
    )


def test_a_store_of_schema_1_is_not_gone_on_with(old, checkpoint, words):
    with pytest.raises(confreg.ConfregError, match=r"schema 1\.0: it can be opened, and not be"):
        confreg.run("entropy_neurons", model=str(checkpoint("llama")), text=words, out=old, **SMALL)
    assert str(confreg.open(old).attrs["confreg_schema"]).startswith("1.")  # it is left alone
