"""Calibration against a computation from first principles, and in recipes."""

from __future__ import annotations

import declared
import numpy as np
import oracle
import pytest
import torch
import zoo
from hypothesis import given
from hypothesis import strategies as st

import confreg
from confreg.derive.reliability import scores
from confreg.errors import ConfregError
from confreg.report import reliability as page
from confreg.report import write

BINS = 15


def plain(confidence, correct, bins=BINS):
    """The definitions, one prediction after another, in Python's own numbers."""
    pairs = list(zip(map(float, confidence), map(float, correct)))
    n = len(pairs)
    gaps, ece = [], 0.0
    for b in range(bins):
        inside = [(c, o) for c, o in pairs if b / bins < c <= (b + 1) / bins or (b == 0 and c == 0)]
        if inside:
            sure = sum(c for c, _ in inside) / len(inside)
            right = sum(o for _, o in inside) / len(inside)
            gaps.append(abs(sure - right))
            ece += len(inside) / n * gaps[-1]
    adaptive = 0.0
    for b in range(bins):
        # A prediction's place is the number of those that are less confident.
        inside = [
            (c, o) for c, o in pairs
            if b <= sum(other < c for other, _ in pairs) * bins / n < b + 1
        ]  # fmt: skip
        if inside:
            sure = sum(c for c, _ in inside) / len(inside)
            right = sum(o for _, o in inside) / len(inside)
            adaptive += len(inside) / n * abs(sure - right)
    return {
        "accuracy": sum(o for _, o in pairs) / n,
        "mean_confidence": sum(c for c, _ in pairs) / n,
        "ece": ece,
        "ece_adaptive": adaptive,
        "mce": max(gaps),
        "brier": sum((c - o) ** 2 for c, o in pairs) / n,
    }


# Sixteenths: many ties, and none of them on an edge between bins but 0 and 1.
TIED = st.integers(0, 16).map(lambda k: k / 16)
FREE = st.floats(0, 1).filter(lambda c: abs(c * BINS - round(c * BINS)) > 1e-9 or c in (0, 1))


@given(st.lists(st.tuples(st.one_of(TIED, FREE), st.integers(0, 1)), min_size=1, max_size=60))
def test_they_follow_their_definitions(pairs):
    confidence, correct = np.array(pairs, dtype=float).T
    found = scores(confidence, correct)
    for name, value in plain(confidence, correct).items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-12), name
    assert found.bin_tokens.sum() == found.calibration_tokens == len(pairs)
    order = np.random.default_rng(0).permutation(len(pairs))
    again = scores(confidence[order], correct[order])
    assert again.ece_adaptive == pytest.approx(found.ece_adaptive, abs=1e-12)


def test_numbers_worked_out_by_hand():
    # Two bins, (0.8, 0.8667] and (0.5333, 0.6]; 13 are empty.
    found = scores(np.array([0.85, 0.85, 0.85, 0.55]), np.array([1, 1, 0, 1]))
    assert found.accuracy == 0.75
    assert found.ece == pytest.approx(0.75 * (0.85 - 2 / 3) + 0.25 * 0.45)
    assert found.mce == pytest.approx(0.45)
    assert found.brier == pytest.approx((2 * 0.15**2 + 0.85**2 + 0.45**2) / 4)
    assert np.isfinite(found.bin_accuracy).sum() == 2
    assert found.bin_tokens[12] == 3
    # The upper end of a bin belongs to it, and 0 to the first.
    assert scores(np.array([0.0, 0.2, 1.0]), np.ones(3)).bin_tokens[[0, 2, 14]].tolist() == [1] * 3


def test_what_is_no_number_is_left_out():
    found = scores(np.array([0.9, np.nan, 0.9]), np.array([1.0, 1.0, np.nan]))
    assert found.calibration_tokens == 1
    assert found.ece == pytest.approx(0.1)
    nothing = scores(np.array([np.nan]), np.array([1.0]))
    assert np.isnan(nothing.ece)
    assert nothing.calibration_tokens == 0


def run(checkpoint, words, out, architecture="llama", recipe="calibration", **options):
    return confreg.run(
        recipe, model=str(checkpoint(architecture)), text=words, out=out,
        sequence_length=16, max_tokens=48, progress=False, **options,
    ).load()  # fmt: skip


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize(("engine", "layer"), [("exact", 2), ("forward", 1)])
def test_the_recipe_against_plain_transformers(
    checkpoint, words, tmp_path, architecture, engine, layer
):
    chosen = f"{layer}.3,{layer}.9"
    ds = run(
        checkpoint, words, tmp_path / "o.zarr", architecture, engine=engine, layer=layer,
        neurons=chosen, ablation=4.0,
    )  # fmt: skip
    declared.validate(ds)
    judge = oracle.Oracle(zoo.tiny(architecture)[0])
    texts = [
        torch.from_numpy(ds["token_id"].values[ds["sequence"].values == s])[None]
        for s in np.unique(ds["sequence"])
    ]
    keep = ds["keep"].values
    for i, index in enumerate((3, 9)):
        edit = oracle.setting({index: 4.0})
        found = [judge.edited(ids, judge.down.format(layer), edit) for ids in texts]
        effects = {name: torch.cat([one[name] for one in found]).numpy() for name in found[0]}
        assert np.abs(effects["confidence_total"]).max() > 1e-4
        for name in ds["effect"].values:
            mine = ds["effects"].isel(neuron=i).sel(effect=name).values
            np.testing.assert_allclose(mine[keep], effects[name][keep], atol=1e-4, err_msg=name)
            assert np.isnan(mine[~keep]).all()
        confidence, correct = (
            (ds[name].values.astype(float) + effects[f"{name}_total"])[keep]
            for name in ("confidence", "correct")
        )
        for name, value in plain(confidence, correct).items():
            np.testing.assert_allclose(float(ds[name][i]), value, atol=1e-4, err_msg=name)
    for name, value in plain(ds["confidence"].values[keep], ds["correct"].values[keep]).items():
        np.testing.assert_allclose(float(ds[f"unablated_{name}"]), value, atol=1e-6, err_msg=name)
    assert int(ds["unablated_calibration_tokens"]) == keep.sum()


def test_the_unablated_model_s_own_numbers_are_plain_transformers(checkpoint, words, tmp_path):
    ds = run(checkpoint, words, tmp_path / "o.zarr", neurons="2.3")
    network = zoo.tiny("llama")[0]
    for s in np.unique(ds["sequence"]):
        here = ds["sequence"].values == s
        ids = torch.from_numpy(ds["token_id"].values[here])[None]
        with torch.no_grad():
            p = network(ids).logits[0].double().softmax(-1)
        np.testing.assert_allclose(ds["confidence"].values[here], p.amax(-1), atol=1e-5)
        hit = (p.argmax(-1)[:-1] == ids[0, 1:]).numpy()
        np.testing.assert_array_equal(ds["correct"].values[here][:-1], hit)
        assert np.isnan(ds["correct"].values[here][-1])


def test_sets_are_held_against_random_ones_and_the_page_draws_them(checkpoint, words, tmp_path):
    ds = run(
        checkpoint, words, tmp_path / "o.zarr", recipe="group_ablation", neurons="2.3,2.9;2:5-6",
        random_sets=9, deviations="0,3", effects=["confidence_total", "correct_total"],
    )  # fmt: skip
    declared.validate(ds)
    for name in ("accuracy", "mean_confidence", "ece", "brier"):
        change = np.abs(ds[name].values - float(ds[f"unablated_{name}"]))
        for i in np.flatnonzero(ds["set_kind"].values == "chosen"):
            same = (ds["set_kind"] == "random") & (ds["set_control"] == ds["set_control"][i])
            same &= ds["set_deviation"] == ds["set_deviation"][i]
            assert same.sum() == 9
            expected = (1 + (change[same.values] >= change[i]).sum()) / 10
            np.testing.assert_allclose(float(ds[f"{name}_p_random"][i]), expected, atol=1e-6)
    figure = page.diagram(ds, "chosen-0")
    before, after = figure.data[-2:]
    there = ds["bin_tokens"].sel(set="chosen-0").values > 0
    np.testing.assert_allclose(after.x, ds["bin_confidence"].sel(set="chosen-0").values[there])
    np.testing.assert_allclose(after.y, ds["bin_accuracy"].sel(set="chosen-0").values[there])
    assert sum(before.customdata) == ds["keep"].sum()
    assert "random sets" in [trace.name for trace in figure.data]
    write(ds, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "Calibration" in text
    assert text.count("reliability-") >= 4


def test_without_the_effects_there_is_no_calibration(checkpoint, words, tmp_path):
    usual = run(
        checkpoint, words, tmp_path / "o.zarr", recipe="group_ablation", neurons="2.3",
        random_sets=1, deviations="0",
    )  # fmt: skip
    assert "ece" not in usual
    with pytest.raises(ConfregError, match="cannot --reduce token"):
        run(checkpoint, words, tmp_path / "r.zarr", neurons="2.3", reduce="token")
