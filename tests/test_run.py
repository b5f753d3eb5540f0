"""A run from text to dataset, against the oracle and against itself."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
import xarray as xr
import zoo

import confreg
from confreg import tokens
from confreg.models import Model
from confreg.results.open import write_netcdf

LENGTH = 16


def run(checkpoint, words, out, architecture="llama", **options):
    options = {"sequence_length": LENGTH, "max_tokens": 90, "progress": False, **options}
    return confreg.run(
        "entropy_neurons", model=str(checkpoint(architecture)), text=words, out=out, **options
    )


@pytest.fixture(scope="module")
def exact(checkpoint, words, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "exact.zarr"
    return run(checkpoint, words, out, engine="exact", activations=True, effects=["all"])


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "olmo2"])
@pytest.mark.parametrize(("engine", "layer"), [("series", 2), ("exact", 2), ("forward", 1)])
def test_the_cube_is_the_oracle_s(checkpoint, words, tmp_path, architecture, engine, layer):
    chosen = f"{layer}:3-7"
    ds = run(
        checkpoint, words, tmp_path / "o.zarr", architecture, engine=engine, neurons=chosen
    ).load()
    network, tokenizer = zoo.tiny(architecture)
    table = tokens.cut(tokens.read(words), tokenizer, LENGTH, 90)
    judge = oracle.Oracle(network)
    # The mean over every token of the text, by the oracle's own forward.
    every = [judge.activations(torch.from_numpy(s)[None], layer) for s in table.sequences]
    values = torch.cat([a.flatten(0, 1) for a in every])[:, 3:8].mean(0).float()
    np.testing.assert_allclose(ds["ablation_value"], values, atol=1e-5)

    for s, ids in enumerate(table.sequences):
        here = ds.isel(token=ds["sequence"].values == s)
        truth = judge.ablate(torch.from_numpy(ids)[None], layer, range(3, 8), values)
        for name in ds["effect"].values:
            mine = here["effects"].sel(effect=name).values
            expected = truth.effects[name].numpy()
            np.testing.assert_array_equal(np.isnan(mine), np.isnan(expected))
            np.testing.assert_allclose(mine, expected, atol=1e-4, err_msg=name)


# Name: dims, dtype, units.
DATASET = {
    "effects": ("neuron token effect", "float32", "see effect_units"),
    "activation": ("neuron token", "float32", "1"),
    "loss": ("token", "float32", "nats"),
    "entropy": ("token", "float32", "nats"),
    "norm_scale": ("token", "float32", "1"),
    "rank": ("token", "int64", "1"),
    "top1": ("token", "int64", ""),
    "w_out_norm": ("neuron", "float32", "1"),
    "logit_var": ("neuron", "float32", "1"),
    "null_fraction": ("neuron", "float32", "1"),
    "singular_value": ("component", "float32", "1"),
    "ablation_value": ("neuron", "float32", "1"),
    "te": ("neuron", "float32", "nats"),
    "de": ("neuron", "float32", "nats"),
    "mediated": ("neuron", "float32", "1"),
    "te_mediated": ("neuron", "float32", "nats"),
    "effect_mean": ("neuron effect", "float32", "see effect_units"),
    "effect_abs_mean": ("neuron effect", "float32", "see effect_units"),
    "neuron": ("neuron", "object", ""),
    "layer": ("neuron", "int32", ""),
    "index": ("neuron", "int32", ""),
    "token": ("token", "int64", ""),
    "sequence": ("token", "int32", ""),
    "position": ("token", "int32", ""),
    "token_id": ("token", "int64", ""),
    "token_text": ("token", "object", ""),
    "next_token_id": ("token", "int64", ""),
    "keep": ("token", "bool", ""),
    "effect": ("effect", "object", ""),
    "effect_units": ("effect", "object", ""),
}


def test_axes_say_what_they_are(exact):
    for name, (dims, dtype, units) in DATASET.items():
        found = exact.variables[name]
        assert (found.dims, str(found.dtype)) == (tuple(dims.split()), dtype), name
        assert found.attrs.get("units", "") == units, name
    assert exact["neuron"].values[:2].tolist() == ["2.0", "2.1"]
    assert exact["effect"].values.tolist()[:2] == ["loss_total", "loss_direct"]
    assert all(isinstance(v, (str, int, float)) for v in exact.attrs.values())
    special = exact["token_text"].values[exact["position"].values == 0]
    assert set(special) == {"<s>"}


def test_a_dataset_holds_what_its_recipe_declares(exact, checkpoint, words):
    plan = confreg.plan(
        "entropy_neurons", model=str(checkpoint("llama")), text=words, sequence_length=LENGTH,
        max_tokens=90, engine="exact", activations=True, effects=["all"],
    )  # fmt: skip
    declared = {v.name: v for item in plan.items for v in item.gives if v.shown}
    assert set(declared) == set(exact.data_vars)
    for name, variable in declared.items():
        found = exact[name]
        dtype = "object" if variable.dtype == "str" else variable.dtype
        assert (found.dims, str(found.dtype)) == (variable.dims, dtype), name
        assert found.attrs == variable.attributes, name
        assert found.attrs["long_name"]
    labels = {name: label for axis in plan.axes.values() for name, label in axis.labels.items()}
    assert set(labels) == set(exact.coords)
    for name, label in labels.items():
        assert exact[name].attrs == label.attributes, name
        np.testing.assert_array_equal(exact[name].values, label.values)


def test_a_last_position_has_no_loss_and_reductions_leave_it_out(exact):
    last = exact["next_token_id"].values == -1
    assert last.any()
    losses = exact["effects"].sel(effect=["loss_total", "loss_direct"]).values
    assert np.isnan(losses[:, last]).all()
    assert np.isfinite(losses[:, ~last]).all()
    assert np.isnan(exact["loss"].values[last]).all()
    keep = exact["keep"].values
    assert not (keep & last).any()
    assert not keep[exact["position"].values < 3].any()
    te, de = (np.abs(losses[:, keep, i].astype(np.float64)).mean(1) for i in (0, 1))
    np.testing.assert_allclose(exact["te"], te, rtol=1e-6)
    np.testing.assert_allclose(exact["mediated"], 1 - de / te, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(exact["te_mediated"], te - de, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("engine", ["series", "exact", "forward"])
def test_units_change_nothing(checkpoint, words, tmp_path, engine):
    common = {"engine": engine, "neurons": "2:0-9"}
    whole = run(checkpoint, words, tmp_path / "a.zarr", **common).load()
    small = {"unit_tokens": LENGTH, "unit_copies": 3, "memory": "100kB"}
    cut = run(checkpoint, words, tmp_path / "b.zarr", **common, **small).load()
    # Numbers without dims say how the series fared: which pairs it leaves is a matter of units.
    measured = [name for name, found in whole.data_vars.items() if found.dims]
    xr.testing.assert_allclose(whole[measured], cut[measured], atol=1e-5)


def test_the_order_of_sequences_changes_nothing(checkpoint, words, tmp_path):
    # Documents of many lengths, in units that begin and end within them.
    common = {
        "engine": "series", "per_document": True, "max_tokens": None, "sequence_length": 60,
        "unit_tokens": 60,
    }  # fmt: skip
    one = run(checkpoint, words, tmp_path / "a.zarr", **common).load()
    two = run(checkpoint, words[::-1], tmp_path / "b.zarr", **common).load()
    order = np.lexsort((two["position"].values, -two["sequence"].values))
    back = two.isel(token=order)
    np.testing.assert_array_equal(one["token_id"], back["token_id"])
    np.testing.assert_allclose(one["effects"], back["effects"], atol=1e-5)
    np.testing.assert_allclose(one["te"], two["te"], atol=1e-5)


def test_reduced_stores_hold_the_same_reductions(checkpoint, words, tmp_path, exact):
    reduced = run(
        checkpoint, words, tmp_path / "r.zarr", engine="exact", reduce="token", effects=["all"]
    )
    assert "effects" not in reduced
    for name in ("te", "de", "mediated", "effect_mean", "effect_abs_mean"):
        np.testing.assert_allclose(reduced[name], exact[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("ablation", "expected"),
    [
        ("zero", lambda a: 0 * a[0]),
        ("0.25", lambda a: 0 * a[0] + 0.25),
        ("p10", lambda a: np.percentile(a, 10, axis=0)),
        ("mean", lambda a: a.astype(np.float64).mean(0)),
    ],
)
@pytest.mark.parametrize("unit", [1000, LENGTH])
def test_ablation_values(checkpoint, words, tmp_path, ablation, expected, unit):
    ds = run(
        checkpoint, words, tmp_path / "v.zarr", ablation=ablation, activations=True,
        neurons="2:0-9", unit_tokens=unit,
    )  # fmt: skip
    np.testing.assert_allclose(ds["ablation_value"], expected(ds["activation"].values.T), atol=1e-6)


def test_a_mean_over_kept_tokens(checkpoint, words, tmp_path):
    ds = run(checkpoint, words, tmp_path / "k.zarr", mean_over="kept", activations=True)
    kept = ds["activation"].values[:, ds["keep"].values].mean(1)
    np.testing.assert_allclose(ds["ablation_value"], kept, atol=1e-6)
    assert ds.attrs["mean_over"] == "kept"


def test_neurons_of_several_layers_choose_their_engines(checkpoint, words, tmp_path):
    ds = run(checkpoint, words, tmp_path / "m.zarr", neurons="0.3,2:5-9,1.1")
    assert ds["neuron"].values.tolist() == ["0.3", "1.1", "2.5", "2.6", "2.7", "2.8", "2.9"]
    assert ds.attrs["engine"] == "forward,series"
    assert np.isfinite(ds["te"]).all()
    alone = run(checkpoint, words, tmp_path / "n.zarr", neurons="1.1")
    np.testing.assert_allclose(ds.confreg.neuron("1.1")["te"], alone["te"][0], atol=1e-6)


def test_a_loaded_model_and_documents_as_strings(words, tmp_path):
    network, tokenizer = zoo.tiny("llama")
    ds = confreg.run(
        "entropy_neurons",
        model=Model.wrap(network, tokenizer, name="mine"),
        text=words,
        sequence_length=LENGTH,
        max_tokens=50,
        neurons="random:5",
        progress=False,
    )
    assert ds.attrs["model"] == "mine"
    assert ds.sizes["neuron"] == 5


def test_the_accessor(exact):
    top = exact.confreg.top("te", 3)
    assert len(top) == 3
    assert top["te"].is_monotonic_decreasing
    assert top["te"].iloc[0] == exact["te"].max()
    assert exact.confreg.neuron("2.5")["neuron"].item() == "2.5"
    assert exact.confreg.layer(2).sizes["neuron"] == 48
    assert exact.confreg.top("entropy_total", 1).index[0] in exact["neuron"].values
    assert exact.confreg.kept().sizes["token"] == int(exact["keep"].sum())
    with pytest.raises(confreg.ConfregError, match=r"no neuron '9.9'"):
        exact.confreg.neuron("9.9")
    with pytest.raises(confreg.ConfregError, match="no neuron of layer 7"):
        exact.confreg.layer(7)
    with pytest.raises(confreg.ConfregError, match="cannot be ranked by 'colour'"):
        exact.confreg.top("colour")


def test_a_round_trip_through_netcdf(exact, tmp_path):
    path = write_netcdf(exact, tmp_path / "exact.nc")
    xr.testing.assert_identical(exact.load(), confreg.open(path).load())
