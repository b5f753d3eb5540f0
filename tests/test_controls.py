"""Controls like the chosen in ‖w_out‖, q values and intervals over sequences."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import scipy.stats
import torch
import zoo

import confreg
from confreg.derive.discovery import q_name, q_values
from confreg.derive.repeats import shift_p
from confreg.errors import ConfregError
from confreg.subjects import matched


def run(checkpoint, words, recipe="group_ablation", architecture="llama", **options):
    options = {"max_tokens": 48, "sequence_length": 16, "progress": False, **options}
    return confreg.run(recipe, model=str(checkpoint(architecture)), text=words, **options).load()


def norms(architecture, layer):
    """‖w_out‖ as the final norm sees it: without its mean where that norm takes it off."""
    network = zoo.tiny(architecture)[0]
    if architecture == "gpt2":
        w = network.transformer.h[layer].mlp.c_proj.weight.double()
        return (w - w.mean(-1, keepdim=True)).norm(dim=-1).numpy()
    return network.model.layers[layer].mlp.down_proj.weight.double().norm(dim=0).numpy()


@pytest.mark.parametrize(("architecture", "layer"), [("llama", 2), ("gpt2", 1)])
def test_random_sets_are_like_the_chosen_in_norm(checkpoint, words, tmp_path, architecture, layer):
    options = {
        "neurons": f"{layer}.3,{layer}.9,{layer}.30;{layer}.5", "random_sets": 6, "layer": layer,
        "deviations": "0,1",
    }  # fmt: skip
    ds = run(
        checkpoint, words, architecture=architecture, controls="norm", out=tmp_path / "o.zarr",
        **options,
    )  # fmt: skip
    w, member, control = norms(architecture, layer), ds["member"].values, ds["set_control"].values
    np.testing.assert_allclose(ds["w_out_norm"], w, rtol=1e-5)
    kind = ds["set_kind"].values
    np.testing.assert_allclose(
        ds["set_norm"], [w[m].mean() for m in member.astype(bool)], rtol=1e-5
    )
    assert (ds["set_norm_gap"].values[kind == "chosen"] == 0).all()
    for number, own in enumerate(([3, 9, 30], [5])):
        others = np.setdiff1d(np.arange(len(w)), own)
        rows = np.flatnonzero((kind == "random") & (control == number))
        assert len({tuple(np.flatnonzero(member[i])) for i in rows}) == 6 == len(rows) // 2
        for i in rows:
            found = np.flatnonzero(member[i])
            assert len(found) == len(own)
            assert not set(found) & set(own)
            # The best pairing in norm is that of the sorted ones; the drawn one is no better.
            best = np.abs(np.log(np.sort(w[found])) - np.log(np.sort(w[own]))).mean()
            assert float(ds["set_norm_gap"][i]) >= best - 1e-6
            for index in found:
                near = [np.argsort(np.abs(np.log(w[others] / w[one])))[:20] for one in own]
                assert any(index in others[some] for some in near)
        if len(own) == 1:
            nearest = others[np.argsort(np.abs(np.log(w[others] / w[own])))[:6]]
            assert {int(np.flatnonzero(member[i])[0]) for i in rows} == set(nearest.tolist())
            gaps = [abs(np.log(w[np.flatnonzero(member[i])[0]] / w[own[0]])) for i in rows]
            np.testing.assert_allclose(ds["set_norm_gap"].values[rows], gaps, atol=1e-6)
    plain = run(checkpoint, words, architecture=architecture, **options)
    before = np.abs(np.log(w[plain["index"].values] / w[3])).mean()
    assert ds["set_norm_gap"].values[kind == "random"].mean() < before / 2
    # The chosen sets' effects do not depend on who the controls are.
    for label in ("chosen-0", "chosen-1:+1σ"):
        np.testing.assert_array_equal(ds["effects"].sel(set=label), plain["effects"].sel(set=label))


def test_a_control_s_effects_are_the_oracle_s(checkpoint, words):
    ds = run(
        checkpoint, words, neurons="2.3,2.9,2.30", random_sets=3, deviations="0", controls="norm"
    )
    judge = oracle.Oracle(zoo.tiny("llama")[0])
    members = np.flatnonzero(ds["member"].sel(set="random-0.1").values)
    texts = [
        torch.from_numpy(ds["token_id"].values[ds["sequence"].values == s])[None]
        for s in np.unique(ds["sequence"])
    ]
    mean = torch.cat([judge.activations(ids, 2).flatten(0, -2) for ids in texts]).mean(0)
    edit = oracle.setting({int(i): float(mean[i]) for i in members})
    found = [judge.edited(ids, judge.down.format(2), edit) for ids in texts]
    for name in ("loss_total", "loss_direct", "entropy_total"):
        truth = torch.cat([one[name] for one in found])
        mine = ds["effects"].sel(set="random-0.1", effect=name)
        np.testing.assert_allclose(mine, truth, atol=1e-4)
    again = run(
        checkpoint, words, neurons="2.3,2.9,2.30", random_sets=3, deviations="0", controls="norm",
        seed=1,
    )  # fmt: skip
    assert not np.array_equal(again["member"], ds["member"])


def test_neurons_that_repeat_are_held_against_those_like_them(checkpoint, words):
    ds = run(
        checkpoint, words, "induction", neurons="2.3,2.9", random_sets=5, length=6,
        controls="norm",
    )  # fmt: skip
    kind, member = ds["set_kind"].values, ds["member"].values
    chosen, drawn = member[kind == "chosen"].any(0), member[kind == "random"].any(0)
    assert np.flatnonzero(chosen).tolist() == [3, 9]
    used = chosen | drawn
    assert used.sum() < ds.sizes["neuron"] == 48
    expected = shift_p(ds["shift_sigma"].values[used], chosen[used])
    np.testing.assert_allclose(ds["shift_p"].values[used], expected)
    assert np.isnan(ds["shift_p"].values[~chosen]).all()
    assert np.isfinite(ds["shift_q"].values[chosen]).all()


def test_too_few_to_draw_from_are_said(checkpoint, words):
    with pytest.raises(ConfregError, match="too few"):
        run(checkpoint, words, neurons="2:0-40", random_sets=9, controls="norm")
    with pytest.raises(ConfregError, match="controls"):
        run(checkpoint, words, neurons="2.1", controls="size")


def test_sets_of_many_near_neurons_can_be_drawn():
    rng = np.random.default_rng(0)
    w = np.exp(rng.normal(size=40))
    drawn = matched.sets(rng, w, np.arange(4, 40), np.array([0, 1, 2, 3]), 200)
    assert len({tuple(one.members) for one in drawn}) == 200
    pair = matched.sets(rng, w, np.arange(2, 9), np.array([0, 1]), 21)  # C(7, 2)
    assert len({tuple(one.members) for one in pair}) == 21


def naive_q(p):
    """Benjamini and Hochberg's, from their definition."""
    m = len(p)
    ranked = sorted(p)
    return [
        min(min(1.0, ranked[j] * m / (j + 1)) for j in range(m) if ranked[j] >= value)
        for value in p
    ]


def test_q_is_that_of_its_definition():
    p = np.random.default_rng(0).random((9, 2))
    p[3, 0] = p[5, 0] = np.nan
    found = q_values(p)
    there = np.isfinite(p[:, 0])
    np.testing.assert_allclose(found[there, 0], naive_q(p[there, 0]))
    np.testing.assert_allclose(found[:, 1], naive_q(p[:, 1]))
    assert np.isnan(found[~there, 0]).all()
    both = q_values(p, None)
    np.testing.assert_allclose(both[np.isfinite(p)], naive_q(p[np.isfinite(p)]))
    assert [q_name(name) for name in ("p_random", "ece_p_random", "shift_p")] == [
        "q_random", "ece_q_random", "shift_q"
    ]  # fmt: skip


def test_q_stands_beside_p(checkpoint, words):
    ds = run(
        checkpoint, words, neurons="2.3,2.9;2.5,2.6;2.7,2.8", random_sets=9, deviations="0,1",
        effects=["loss_total", "confidence_total", "correct_total"],
    )  # fmt: skip
    chosen = ds["set_kind"].values == "chosen"
    for name in ("p_random", "ece_p_random"):
        q = ds[q_name(name)]
        assert "all chosen sets" in q.attrs["long_name"]
        assert name in q.attrs["long_name"]
        p = ds[name].values[chosen].reshape(6, -1)
        for column, expected in enumerate(p.T):
            np.testing.assert_allclose(
                q.values[chosen].reshape(6, -1)[:, column], naive_q(expected), rtol=1e-5
            )
        assert np.isnan(q.values[~chosen]).all()


def test_intervals_are_over_sequences(checkpoint, words):
    ds = run(checkpoint, words, "entropy_neurons", neurons="2:0-5", max_tokens=160)
    found = ds.confreg.intervals(draws=4000)
    keep, sequence = ds["keep"].values, ds["sequence"].values
    size = {
        name: np.abs(ds["effects"].sel(effect=f"loss_{way}").values.astype(float))
        for name, way in (("te", "total"), ("de", "direct"))
    }
    for name in ("te", "de", "te_mediated", "mediated"):
        np.testing.assert_allclose(found[name], ds[name], rtol=1e-4, atol=1e-6)
        assert (found[f"{name}_low"] <= found[name]).all()
        assert (found[f"{name}_high"] >= found[name]).all()
        assert found[f"{name}_low"].attrs["long_name"].startswith("low end of the 95 % interval")
    parts = [
        (size["te"][2][keep & (sequence == s)], size["de"][2][keep & (sequence == s)])
        for s in np.unique(sequence[keep])
    ]

    def share(*drawn, axis=-1):
        te, de, n = drawn
        return 1 - (de.sum(axis) / n.sum(axis)) / (te.sum(axis) / n.sum(axis))

    sums = [np.array([each.sum() for each in column]) for column in zip(*parts)]
    counts = np.array([len(te) for te, _ in parts])
    truth = scipy.stats.bootstrap(
        (*sums, counts), share, paired=True, n_resamples=20000, method="percentile"
    ).confidence_interval
    width = truth.high - truth.low
    assert abs(float(found["mediated_low"][2]) - truth.low) < 0.08 * width
    assert abs(float(found["mediated_high"][2]) - truth.high) < 0.08 * width


def test_intervals_that_cannot_be_are_said(checkpoint, words):
    few = run(checkpoint, words, "entropy_neurons", neurons="2:0-2", max_tokens=16)
    with pytest.raises(ConfregError, match="of one sequence"):
        few.confreg.intervals()
    with pytest.raises(ConfregError, match="total and the direct effect"):
        few.isel(effect=[2]).confreg.intervals()
    with pytest.raises(ConfregError, match="no effects at single tokens"):
        few.drop_vars("effects").confreg.intervals()
