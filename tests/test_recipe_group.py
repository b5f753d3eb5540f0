"""Sets of neurons ablated together, against plain transformers."""

from __future__ import annotations

import declared
import numpy as np
import oracle
import pytest
import torch
import zoo

import confreg
from confreg import cli
from confreg.errors import ConfregError


def run(checkpoint, words, out, architecture="llama", **options):
    options = {"neurons": "2.3,2.9,2.30;2:5-6", "random_sets": 3, "progress": False, **options}
    return confreg.run(
        "group_ablation", model=str(checkpoint(architecture)), text=words, out=out,
        sequence_length=16, max_tokens=48, **options,
    ).load()  # fmt: skip


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2", "olmo2"])
@pytest.mark.parametrize(("engine", "layer"), [("exact", 2), ("forward", 1)])
def test_sets_are_the_oracle_s(checkpoint, words, tmp_path, architecture, engine, layer):
    names = ["loss_total", "loss_direct", "entropy_total", "entropy_direct"]
    chosen = f"{layer}.3,{layer}.9,{layer}.30;{layer}:5-6"
    ds = run(
        checkpoint, words, tmp_path / "o.zarr", architecture, engine=engine, layer=layer,
        neurons=chosen, random_sets=1, deviations="0,1.5",
    )  # fmt: skip
    declared.validate(ds)
    network = zoo.tiny(architecture)[0]
    judge = oracle.Oracle(network)
    texts = [
        torch.from_numpy(ds["token_id"].values[ds["sequence"].values == s])[None]
        for s in np.unique(ds["sequence"])
    ]
    active = torch.cat([judge.activations(ids, layer).flatten(0, -2) for ids in texts])
    mean, spread = active.mean(0), active.std(0, correction=0)
    index = ds["index"].values
    np.testing.assert_allclose(ds["ablation_value"], mean[index], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ds["activation_deviation"], spread[index], rtol=1e-5, atol=1e-5)
    assert ds.sizes["set"] == 2 * 2 * 2
    for i, label in enumerate(ds["set"].values):
        members = index[ds["member"].values[i]]
        values = mean + float(ds["set_deviation"][i]) * spread

        def replace(hidden, members=members, values=values):
            hidden[..., members] = values[members]
            return hidden

        found = [judge.edited(ids, judge.down.format(layer), replace) for ids in texts]
        for name in names:
            mine = ds["effects"].isel(set=i).sel(effect=name)
            truth = torch.cat([one[name] for one in found])
            np.testing.assert_allclose(mine, truth, atol=1e-4, err_msg=f"{label} {name}")
            kept = truth.numpy()[ds["keep"].values]
            mean_abs = ds["effect_abs_mean"].isel(set=i).sel(effect=name)
            np.testing.assert_allclose(mean_abs, np.abs(kept).mean(), atol=1e-4)


def test_controls_are_of_the_same_size_and_hold_none_of_the_chosen(checkpoint, words, tmp_path):
    ds = run(checkpoint, words, tmp_path / "o.zarr")
    member = ds["member"].values
    assert ds.sizes["set"] == 2 * 3 * (1 + 3)
    for i in np.flatnonzero(ds["set_kind"].values == "random"):
        control, k = ds["set_control"].values[i], ds["set_deviation"].values[i]
        same = (ds["set_control"] == control) & (ds["set_deviation"] == k)
        (own,) = np.flatnonzero(same & (ds["set_kind"] == "chosen"))
        assert member[i].sum() == member[own].sum() == ds["set_size"].values[i]
        assert not (member[i] & member[own]).any()
    # A control is the same set at every ablation value.
    labels = ds["set"].values.tolist()
    first = member[labels.index("random-0.1")]
    np.testing.assert_array_equal(first, member[labels.index("random-0.1:+1σ")])


def test_the_share_of_random_sets_that_do_as_much(checkpoint, words, tmp_path):
    ds = run(checkpoint, words, tmp_path / "o.zarr", random_sets=9, deviations="0")
    size = np.abs(ds["effects"].isel(token=ds["keep"].values)).mean("token")
    for control in (0, 1):
        here = size.isel(set=ds["set_control"].values == control)
        expected = (1 + (here[1:] >= here[0]).sum("set")) / 10
        found = ds["p_random"].sel(set=f"chosen-{control}")
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert ds["p_random"].sel(set="random-0.1").isnull().all()


def test_a_set_of_one_is_the_neuron(checkpoint, words, tmp_path):
    group = run(
        checkpoint, words, tmp_path / "g.zarr", neurons="2.7", random_sets=0, deviations="0"
    )
    alone = confreg.run(
        "entropy_neurons", model=str(checkpoint("llama")), text=words, sequence_length=16,
        max_tokens=48, neurons="2.7", engine="exact", progress=False,
    )  # fmt: skip
    np.testing.assert_allclose(group["effects"][0], alone["effects"][0], atol=2e-5)
    np.testing.assert_allclose(group["te"], alone["te"], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"neurons": "all"}, "name them with --neurons"),
        ({"neurons": "2:0-47"}, "too few"),
        ({"neurons": "1.3;2.4"}, "of one layer"),
        ({"deviations": "1;2"}, "list of numbers"),
        ({"activations": True}, r"no neuron \(set\)"),
    ],
)
def test_refusals(checkpoint, words, tmp_path, options, said):
    with pytest.raises(ConfregError, match=said):
        run(checkpoint, words, tmp_path / "o.zarr", **options)


def test_the_command_shows_sets(checkpoint, words, tmp_path, capsys):
    run(checkpoint, words, tmp_path / "o.zarr")
    cli.main(["show", str(tmp_path / "o.zarr"), "--by", "te", "-n", "30"])
    assert "chosen-0" in capsys.readouterr().out
