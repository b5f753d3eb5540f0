"""Several models, one store each, and the stores together."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import test_cli
import xarray as xr
import zoo

import confreg
from confreg import ConfregError
from confreg.results import atlas

ROLES = ("prediction", "suppression", "partition", "entropy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Censuses of two models of one shape and one of another, by one command; one model is none."""
    root = tmp_path_factory.mktemp("many")
    zoo.save("llama", root / "a-step10")
    zoo.save("llama", root / "a-step200", seed=1)
    zoo.save("gpt2", root / "b", n_layer=2)
    models = [x for name in ("a-step10", "none", "a-step200", "b")
              for x in ("--model", str(root / name))]  # fmt: skip
    more = ["-p", "kurtosis_above=3.0", "--quiet", "--out", str(root / "atlas")]
    assert test_cli.call("run", "census", *models, *more) == 2
    return root / "atlas"


def test_a_model_that_fails_does_not_stop_the_others(folder, capsys):
    tree = confreg.open(folder)
    assert isinstance(tree, xr.DataTree)
    assert list(tree.children) == ["a-step10", "a-step200", "b"]
    assert "none: " in (folder / "failed.txt").read_text()
    alone = confreg.run(
        "census", model=str(folder.parent / "b"), out=folder.parent / "alone.zarr",
        progress=False, kurtosis_above=3.0,
    )  # fmt: skip
    xr.testing.assert_equal(tree["b"].to_dataset(), alone)


def test_it_goes_on_with_what_is_there_and_forgets_what_failed(folder):
    before = {p: p.stat().st_mtime_ns for p in folder.glob("*.zarr/zarr.json")}
    models = [str(folder.parent / name) for name in ("a-step10", "a-step200", "b")]
    tree = confreg.run_each("census", models, folder, progress=False, kurtosis_above=3.0)
    assert len(tree.children) == 3
    assert before == {p: p.stat().st_mtime_ns for p in folder.glob("*.zarr/zarr.json")}
    with pytest.raises(ConfregError, match="written as 'b': name each once"):
        confreg.run_each("census", [models[2], models[2]], folder)


def test_what_is_common_lies_along_model(folder):
    tree = confreg.open(folder)
    some = xr.DataTree.from_dict(
        {name: tree[name].to_dataset()[["role"]] for name in ("a-step10", "b")}
    )
    with pytest.raises(ConfregError, match="no variable of one shape"):
        confreg.along_models(some)
    pair = xr.DataTree.from_dict({n: tree[n].to_dataset() for n in ("a-step10", "a-step200")})
    both = confreg.along_models(pair)
    assert both["w_out_norm"].dims == ("model", "neuron")
    for name in both["model"].values:
        np.testing.assert_array_equal(both["w_out_norm"].sel(model=name), tree[name]["w_out_norm"])
        np.testing.assert_array_equal(both["role"].sel(model=name), tree[name]["role"])
    every = confreg.along_models(tree)
    assert "null_fraction_chance" in every
    assert "w_out_norm" in every.attrs["left_out"].split(", ")


def test_the_atlas_counts_what_the_stores_say(folder):
    tree = confreg.open(folder)
    found = atlas.atlas(tree)
    assert found["training_step"].values[:2].tolist() == [10, 200]
    assert np.isnan(found["training_step"].values[2])
    assert found["family"].values.tolist() == ["a", "a", "b"]
    ds = tree["a-step10"].to_dataset()
    for layer, depth in ((0, 0), (1, 5), (2, 9)):
        here = ds.isel(neuron=ds["layer"].values == layer)
        for role in ROLES:
            share = (here["role"].values == role).mean()
            got = found["role_share"].sel(model="a-step10", role_name=role).values[depth]
            assert float(got) == share
        median = np.median(here["vocab_kurtosis"].values)
        assert float(found["median_kurtosis"].values[0, depth]) == pytest.approx(median)
    last = ds["null_fraction"].values[ds["layer"].values >= 1]
    assert float(found["rho_largest"].values[0]) == last.max()
    assert float(found["rho_99"].values[0]) == pytest.approx(np.quantile(last, 0.99), rel=1e-6)


def test_the_command_writes_a_page_and_one_table(folder, tmp_path, capsys):
    page, file = tmp_path / "a.html", tmp_path / "a.parquet"
    assert test_cli.call("atlas", str(folder), "-o", str(page), "--parquet", str(file)) == 0
    html = page.read_text()
    assert "3 models; depth is relative" in html
    frame = pd.read_parquet(file)
    assert len(frame) == 48 * (3 + 3 + 2)
    row = frame[(frame["model"] == "b") & (frame["neuron"] == "1.7")].iloc[0]
    one = confreg.open(folder)["b"].to_dataset().sel(neuron="1.7")
    assert row["w_out_norm"] == float(one["w_out_norm"])
    assert row["layer"] == 1
    assert json.dumps(str(row["role"])) == json.dumps(str(one["role"].values))
    assert test_cli.call("atlas", str(tmp_path)) == 2
