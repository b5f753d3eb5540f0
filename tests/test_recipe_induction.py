"""Neurons where a text comes again, against plain transformers."""

from __future__ import annotations

import functools

import declared
import numpy as np
import oracle
import pytest
import torch
import zoo
from resuming import digest

import confreg
from confreg import cli, models
from confreg.errors import ConfregError
from confreg.sweep.store import Store

NAMES = ["loss_total", "loss_direct", "entropy_total", "entropy_direct"]


def run(checkpoint, words, out, architecture="llama", **options):
    options = {
        "neurons": "2.3,2.9,2.30", "random_sets": 3, "length": 6, "sequence_length": 24,
        "max_tokens": 60, "progress": False, **options,
    }  # fmt: skip
    return confreg.run(
        "induction", model=str(checkpoint(architecture)), text=words, out=out, **options
    ).load()


def texts(ds):
    return [
        torch.from_numpy(ds["token_id"].values[ds["sequence"].values == s])[None]
        for s in np.unique(ds["sequence"])
    ]


def occurrences(ids, length, between=0):
    """Which tokens of one sequence count, by hand: of the first occurrence, and the second."""
    at = np.arange(ids.shape[1])
    first = (at >= 3) & (at < length)
    second = (at > length + between) & (at < 2 * length + between)
    return first, second


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2", "olmo2"])
@pytest.mark.parametrize(("engine", "layer"), [("exact", 2), ("forward", 1), ("forward", 2)])
def test_sets_are_the_oracle_s(checkpoint, words, tmp_path, architecture, engine, layer):
    ds = run(
        checkpoint, words, tmp_path / "o.zarr", architecture, engine=engine, layer=layer,
        neurons=f"{layer}.3,{layer}.9,{layer}.30", random_sets=1, separator="w5 w6",
    )  # fmt: skip
    declared.validate(ds)
    network = zoo.tiny(architecture)[0]
    judge = oracle.Oracle(network)
    active = [judge.activations(ids, layer).flatten(0, -2) for ids in texts(ds)]
    over = [occurrences(ids, 6, between=2) for ids in texts(ds)]
    first, second = (
        torch.cat([a[torch.from_numpy(o[n])] for a, o in zip(active, over)]).mean(0) for n in (0, 1)
    )
    index = ds["index"].values
    np.testing.assert_allclose(ds["ablation_value"], first[index], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ds["mean_first"], first[index], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ds["mean_second"], second[index], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ds["activation"], torch.cat(active)[:, index].T, atol=1e-4)
    np.testing.assert_array_equal(ds["keep"], np.concatenate([o[1] for o in over]))
    assert ds.attrs["mean_over"] == "first"
    assert ds.attrs["mean_over_tokens"] == sum(o[0].sum() for o in over)
    assert ds.sizes["set"] == 2 * (3 + 1 + 1 + 1)
    for i, label in enumerate(ds["set"].values):
        members, clipped = index[ds["member"].values[i]], bool(ds["set_clipped"][i])

        def replace(hidden, members=members, clipped=clipped):
            for m in members:
                now, mean = hidden[..., m].clone(), first[m]
                touched = torch.ones_like(now, dtype=torch.bool)
                if clipped:
                    touched = now > mean if second[m] > first[m] else now < mean
                hidden[..., m] = torch.where(touched, mean.to(now), now)
            return hidden

        found = [judge.edited(ids, judge.down.format(layer), replace) for ids in texts(ds)]
        for name in NAMES:
            mine = ds["effects"].isel(set=i).sel(effect=name)
            truth = torch.cat([one[name] for one in found])
            outside = ds["occurrence"].values < 0
            assert np.isnan(mine.values[outside]).all()
            truth[torch.from_numpy(outside)] = torch.nan
            np.testing.assert_allclose(mine, truth, atol=1e-4, err_msg=f"{label} {name}")
            again = truth.numpy()[ds["keep"].values]
            for reduced, mean in (("effect_abs_mean", np.abs(again)), ("effect_mean", again)):
                ours = ds[reduced].isel(set=i).sel(effect=name)
                np.testing.assert_allclose(ours, mean.mean(), atol=1e-4)


def test_the_last_token_has_no_loss(checkpoint, words, tmp_path):
    ds = run(checkpoint, words, tmp_path / "o.zarr")
    last = ds["next_token_id"].values < 0
    assert last.sum() == len(np.unique(ds["sequence"]))
    assert np.isnan(ds["loss"].values[last]).all()
    assert np.isnan(ds["effects"].sel(effect="loss_total").values[:, last]).all()
    inside = ds["occurrence"].values >= 0
    assert not np.isnan(ds["effects"].sel(effect="entropy_total").values[:, inside]).any()
    assert not ds["compared"].values[last].any()


def test_a_clipped_ablation_takes_back_what_the_repeat_did(checkpoint, words, tmp_path):
    ds = run(checkpoint, words, tmp_path / "o.zarr").sel(effect="loss_total")
    for neuron in ("2.3", "2.9", "2.30"):
        own = ds.sel(neuron=neuron)
        up = float(own["mean_second"]) > float(own["mean_first"])
        above = own["activation"].values > float(own["ablation_value"])
        known = (ds["next_token_id"].values >= 0) & (ds["occurrence"].values >= 0)
        plain_, clipped = (ds["effects"].sel(set=name) for name in (neuron, neuron + ":clipped"))
        moved = known & (above == up)
        np.testing.assert_array_equal(clipped[moved], plain_[moved])
        assert (clipped[known & (above != up)] == 0).all()
        assert 0 < moved.sum() < known.sum()


def test_controls_are_of_the_same_layer_and_size_and_not_chosen(checkpoint, words, tmp_path):
    ds = run(checkpoint, words, tmp_path / "o.zarr", neurons="2.3,2.9,2.30;2.5,2.40,2.3;2.11")
    member, kind = ds["member"].values, ds["set_kind"].values
    chosen = member[kind == "chosen"].any(0)
    assert set(ds["neuron"].values[chosen]) == {"2.3", "2.5", "2.9", "2.11", "2.30", "2.40"}
    assert set(ds["layer"].values) == {2}
    assert not member[kind == "random"][:, chosen].any()
    # Each neuron alone, two joint sets, not a set of one again; each with three controls.
    assert (kind == "chosen").sum() == 2 * (6 + 2)
    assert (kind == "random").sum() == 2 * 3 * (1 + 2)
    np.testing.assert_array_equal(member.sum(1), ds["set_size"])
    labels = ds["set"].values.tolist()
    for label in labels:
        if label.endswith(":clipped"):
            own, plain_ = labels.index(label), labels.index(label.removesuffix(":clipped"))
            np.testing.assert_array_equal(member[own], member[plain_])


def test_the_share_of_random_sets_that_do_as_much(checkpoint, words, tmp_path):
    ds = run(checkpoint, words, tmp_path / "o.zarr", random_sets=9)
    size = np.abs(ds["effects"].isel(token=ds["keep"].values)).mean("token")
    for label in ("2.9", "2.9:clipped", "joint-0", "joint-0:clipped"):
        own = ds.sel(set=label)
        same = (ds["set_size"] == own["set_size"]) & (ds["set_clipped"] == own["set_clipped"])
        controls = size.isel(set=(same & (ds["set_kind"] == "random")).values)
        assert controls.sizes["set"] == 9
        expected = (1 + (controls >= size.sel(set=label)).sum("set")) / 10
        np.testing.assert_allclose(own["p_random"], expected, atol=1e-6)
    assert ds["p_random"].sel(set="random-0.1").isnull().all()


def test_clipped_sets_travel(checkpoint, words):
    """Serialised and deserialised, as a server gets it."""
    model = models.load(str(checkpoint("llama")))
    for engine in ("exact", "forward"):
        plan = confreg.plan(
            "induction", model=model, text=words, engine=engine, neurons="2.3,2.9",
            random_sets=1, length=6, count=2,
        )  # fmt: skip
        layout, n = plan.layout("effects"), len(plan.axes["neuron"])
        stored = {
            "ablation_value": np.ones(n, dtype=np.float32),
            "mean_first": np.ones(n, dtype=np.float32),
            "mean_second": np.full(n, 2, dtype=np.float32),
        }
        unit = layout.step.unit(layout.units()[0], stored)
        found = []
        for options in ({}, {"remote": "local"}):
            model.trace = functools.partial(model.nn.trace, use_cache=False, **options)
            with torch.no_grad():
                found.append(layout.step.trace(model, unit))
        torch.testing.assert_close(found[0]["effects"], found[1]["effects"], equal_nan=True)


def test_the_mean_may_be_over_all_tokens(checkpoint, words, tmp_path):
    ds = run(checkpoint, words, tmp_path / "o.zarr", mean_over="all")
    np.testing.assert_allclose(
        ds["ablation_value"], ds["activation"].mean("token"), rtol=1e-5, atol=1e-5
    )
    assert (ds.attrs["mean_over"], ds.attrs["mean_over_tokens"]) == ("all", ds.sizes["token"])
    first = (ds["compared"] & (ds["occurrence"] == 0)).values
    means = ds["activation"].isel(token=first).mean("token")
    np.testing.assert_allclose(ds["mean_first"], means, rtol=1e-5, atol=1e-5)


def test_the_mean_may_be_over_the_text_as_it_is(checkpoint, words, tmp_path):
    ds = run(checkpoint, words, tmp_path / "o.zarr", mean_over="text", max_tokens=96)
    declared.validate(ds)
    plain = confreg.run(
        "entropy_neurons", model=str(checkpoint("llama")), text=words, sequence_length=24,
        max_tokens=96, neurons="2:0-47", mean_over="kept", engine="exact", progress=False,
        out=tmp_path / "p.zarr",
    ).load()  # fmt: skip
    judge = oracle.Oracle(zoo.tiny("llama")[0])
    active = torch.cat([judge.activations(ids, 2).flatten(0, -2) for ids in texts(plain)])
    mean = active[torch.from_numpy(plain["keep"].values)].mean(0)[ds["index"].values]
    np.testing.assert_allclose(ds["ablation_value"], mean, rtol=1e-5, atol=1e-5)
    assert np.abs(ds["ablation_value"] - ds["mean_first"]).max() > 1e-2
    assert "sample" not in ds.dims
    assert ds.attrs["mean_over"] == "text"
    assert ds.attrs["mean_over_tokens"] == int(plain["keep"].sum())
    assert ds.attrs["corpus"].endswith("6 tokens, repeated")


@pytest.mark.parametrize("kind", ["random", "ngrams"])
def test_other_repeats(checkpoint, words, tmp_path, kind):
    rng = np.random.default_rng(0)
    documents = []
    for alike in (True, False):
        a = [f"w{i}" for i in rng.choice(np.arange(2, 60), 4, replace=False)]
        before, after = (["w70", "w71"], ["w70" if alike else "w72", "w71"])
        documents.append(" ".join(["w80", "w81", "w82", *a, *before, *a, *after]))
    ds = run(checkpoint, documents, tmp_path / "o.zarr", repeats=kind, ngram=4, max_tokens=40)
    declared.validate(ds)
    assert set(ds["occurrence"].values) == {-1, 0, 1}
    assert set(ds["matched"].values) == {True, False}
    np.testing.assert_array_equal(ds["keep"], ds["compared"] & (ds["occurrence"] == 1))
    if kind == "ngrams":
        assert ds.sizes["token"] == 2 * 15
        alike = ds.isel(token=ds["sequence"].values == 0)
        assert alike["matched"].sum() == 8


def test_a_run_that_is_killed_ends_with_the_same_bytes(checkpoint, words, tmp_path, monkeypatch):
    out = tmp_path / "o.zarr"
    options = {"command_line": "same", "engine": "forward", "unit_tokens": 16}
    run(checkpoint, words, out, **options)
    whole = digest(out)
    write_unit, write = Store.write_unit, Store.write
    for name, real, allowed in (("write", write, 2), ("write_unit", write_unit, 3)):
        left = [allowed]

        def dying(self, *args, real=real, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real(self, *args)

        out.rename(tmp_path / f"before-{name}")
        monkeypatch.setattr(Store, name, dying)
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint, words, out, **options)
        monkeypatch.setattr(Store, name, real)
        run(checkpoint, words, out, **options)
        assert digest(out) == whole


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"neurons": "all"}, "name them with --neurons"),
        ({"neurons": "2:0-47"}, "too few for 3 random sets of 1"),
        ({"neurons": "1.3;2.4"}, "of one layer"),
        ({"length": 30}, "make sequences of 61: raise --sequence-length from 24"),
        ({"count": 9}, "9 sequences of 13 tokens need max_tokens=117, not 60"),
        ({"repeats": "loops"}, "'repeats'"),
        ({"reduce": "token"}, "single tokens"),
    ],
)
def test_refusals(checkpoint, words, tmp_path, options, said):
    with pytest.raises(ConfregError, match=said):
        run(checkpoint, words, tmp_path / "o.zarr", **options)


def test_the_command_plans_and_shows(checkpoint, words, tmp_path, capsys):
    run(checkpoint, words, tmp_path / "o.zarr")
    cli.main(["show", str(tmp_path / "o.zarr"), "--by", "te", "-n", "30"])
    assert "joint-0:clipped" in capsys.readouterr().out
    line = "plan induction --neurons 2.3 --sequence-length 24 --max-tokens 60 -p length=6"
    cli.main([*line.split(), "--model", str(checkpoint("llama"))])
    said = capsys.readouterr().out
    assert "repeated" in said
    assert "clipped" in said
