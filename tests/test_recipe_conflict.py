"""Knowledge conflicts, against plain transformers and numpy."""

from __future__ import annotations

import itertools

import declared
import numpy as np
import oracle
import pytest
import torch
import zoo

import confreg
from confreg import report
from confreg.derive import conflicts
from confreg.errors import ConfregError
from confreg.steps.typical import mode
from confreg.subjects import ways

WAYS = "mean,median,mode,low,high,q25,9,-9"
CHOSEN = [3, 9, 30]


def prompts(judge, count=24, seed=0):
    """Prompts, about half of them with an answer that the model gives now, or once ablated."""
    draw = np.random.default_rng(seed)
    found = []
    for number in range(count):
        ids = draw.integers(2, 90, draw.integers(4, 9)).tolist()
        row = torch.tensor([[0, *ids]])
        now = int(judge.forward(row)[0][0, -1].argmax())
        edit = oracle.setting(dict.fromkeys(CHOSEN, 9.0))
        then = int(judge.forward(row, {judge.down.format(2): edit})[0][0, -1].argmax())
        others = [i for i in draw.permutation(np.arange(2, 90)).tolist() if i not in (now, then)]
        target, contrast = [(now, then), (then, now), (others[0], now), (now, others[0])][
            number % 4
        ]
        # Rows that no token owns, and special tokens, are nobody's answer.
        if target == contrast or not {target, contrast} <= set(range(2, zoo.VOCAB)):
            target, contrast = others[:2]
        found.append(
            {
                "prompt": " ".join(f"w{i}" for i in ids),
                "target": [f" w{target}", f" w{others[2]}"],
                "contrast": f" w{contrast}",
                "prompt_id": f"p{number}",
            }
        )
    return found


@pytest.fixture(scope="module")
def judge():
    return oracle.Oracle(zoo.tiny("llama")[0])


@pytest.fixture(scope="module")
def store(checkpoint, judge, tmp_path_factory):
    out = tmp_path_factory.mktemp("conflict") / "o.zarr"
    confreg.run(
        "knowledge_conflict", model=str(checkpoint("llama")), text=prompts(judge), out=out,
        sequence_length=16, neurons="2.3,2.9,2.30;2.5", ways=WAYS, random_sets=8, progress=False,
    )  # fmt: skip
    return out


def typical(kind, a):
    """From the definition, of one neuron's activations."""
    if kind == "mode":
        edges = [a.min() + (a.max() - a.min()) * i / 100 for i in range(101)]
        inside = [
            sum((lo <= x < hi) or (hi == edges[-1] and x == hi) for x in a)
            for lo, hi in itertools.pairwise(edges)
        ]
        first = int(np.argmax(inside))
        return (edges[first] + edges[first + 1]) / 2
    return {
        "mean": a.mean(),
        "median": np.sort(a)[[(len(a) - 1) // 2, len(a) // 2]].mean(),
        "low": max(a.mean() - 3 * a.std(), a.min()),
        "high": min(a.mean() + 3 * a.std(), a.max()),
        "q25": np.percentile(a, 25),
    }[kind]


def test_answers_and_transitions_are_plain_transformers(store, judge):
    ds = confreg.open(store).load()
    declared.validate(ds)
    given = prompts(judge)
    rows = [torch.tensor([[0, *(int(w[1:]) for w in p["prompt"].split())]]) for p in given]
    whole = [
        torch.cat([row, torch.tensor([[int(p["target"][0][2:])]])], 1)
        for row, p in zip(rows, given)
    ]
    active = torch.cat([judge.activations(ids, 2).flatten(0, -2) for ids in whole]).numpy()

    def kind_of(logits, p):
        top = int(logits[0, -1].argmax())
        if top in {int(t[2:]) for t in p["target"]}:
            return 1
        return 0 if top == int(p["contrast"][2:]) else 2

    entropy = {}

    def answers(edit=None, key=None):
        edits = {judge.down.format(2): edit} if edit else None
        logits = [judge.forward(row, edits)[0] for row in rows]
        entropy[key] = np.array([float(oracle.entropy(one)[0, -1]) for one in logits])
        return [kind_of(one, p) for one, p in zip(logits, given)]

    before = answers()
    assert ds["answer_before"].values.tolist() == before
    assert ds["prompt_name"].values.tolist() == [p["prompt_id"] for p in given]
    assert set(before) == {0, 1, 2}
    moved = 0
    for label in ds["set"].values:
        if label.startswith("random") and not label.startswith("random-0.1"):
            continue
        members = np.flatnonzero(ds["member"].sel(set=label).values)
        members = ds["index"].values[members]
        way = str(ds["set_way"].sel(set=label).values)
        value = {
            int(i): typical(way, active[:, i]) if way in ("mean", "median", "mode", "low", "high",
                                                          "q25") else float(way)
            for i in members
        }  # fmt: skip
        after = answers(oracle.setting(value), "after")
        assert ds["answer_after"].sel(set=label).values.tolist() == after, label
        n = np.zeros((3, 3), dtype=int)
        for s, k in zip(before, after):
            n[s, k] += 1
        np.testing.assert_array_equal(ds["transitions"].sel(set=label), n)
        for k in range(3):
            others = [s for s in range(3) if s != k]
            ratio = sum(n[s, k] for s in others) / sum(n[s].sum() for s in others)
            found = float(ds["conversion_ratio"].sel(set=label)[k])
            assert found == pytest.approx(ratio)
        moved += (np.array(before) != after).sum()
        score = np.mean(np.array(before) != np.array(after))
        assert float(ds["transition_score"].sel(set=label)) == pytest.approx(score)
        change = entropy["after"] - entropy[None]
        for s in range(3):
            for k in range(3):
                here = (np.array(before) == s) & (np.array(after) == k)
                mine = float(ds["entropy_change"].sel(set=label)[s, k])
                assert (
                    np.isnan(mine)
                    if not here.any()
                    else (mine == pytest.approx(change[here].mean(), abs=1e-4))
                )
    assert moved > 10  # the test sees answers change


def test_random_sets_hold_no_chosen_neuron_and_p_counts_them(store):
    ds = confreg.open(store).load()
    kind, member = ds["set_kind"].values, ds["member"].values
    chosen = member[kind == "chosen"].any(0)
    assert ds["index"].values[chosen].tolist() == [3, 5, 9, 30]
    assert not member[kind == "random"][:, chosen].any()
    for row in np.flatnonzero(kind == "chosen"):
        same = (kind == "random") & (ds["set_way"] == ds["set_way"][row]).values
        same &= (ds["set_control"] == ds["set_control"][row]).values
        assert same.sum() == 8
        for name, of in (("conversion", "conversion_ratio"), ("transition", "transition_score")):
            values = ds[of].values
            p = (1 + (values[same] >= values[row]).sum(0)) / 9
            np.testing.assert_allclose(ds[f"{name}_p_random"].values[row], p, rtol=1e-6)
            below = ((values[same] < values[row]) + (values[same] == values[row]) / 2).mean(0)
            np.testing.assert_allclose(ds[f"{name}_quantile"].values[row], below, rtol=1e-6)
    assert np.isfinite(ds["conversion_q_random"].values[kind == "chosen"]).all()


def test_the_formula_of_each_class_is_its_own():
    counts = np.array([[[4, 1, 0], [2, 3, 1], [0, 0, 5]]])
    ratio, score = conflicts.conversion(counts)
    np.testing.assert_allclose(ratio[0], [2 / 11, 1 / 10, 1 / 11])
    np.testing.assert_allclose(score, [4 / 16])
    ratio, _ = conflicts.conversion(np.array([[[0, 0, 0], [0, 7, 0], [0, 0, 0]]]))
    assert np.isnan(ratio[0, 1])
    assert ratio[0, 0] == 0


def test_the_page_shows_conversions(store, tmp_path):
    page = report.write(confreg.open(store), tmp_path / "o.html").read_text()
    assert "Context against knowledge" in page
    assert "becomes contextual" in page
    assert 'id="sets-predicted' not in page


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text": ["w2 w3 w4 w5 w6 w7 w8 w9"]}, "holds none: give --text confreg:conflicts"),
        ({"text": [{"prompt": "w2 w3", "target": " w4"}]}, "Document 0 .* lacks a contrast"),
        (
            {"text": [{"prompt": "w2 w3", "target": " w4", "contrast": " w4 w5"}]},
            "begin with the same token",
        ),
        ({"ways": "mean,centre"}, "'centre' is not understood"),
        ({"ways": "mean,mean"}, "names a value twice"),
        ({"reduce": "token"}, "cannot --reduce token"),
        ({"neurons": "all"}, "name them with --neurons"),
        ({"mean_from": "a.zarr"}, "holds means and no quantiles"),
    ],
)
def test_refusals(checkpoint, judge, change, said):
    options = {"text": prompts(judge, 2), "neurons": "2.3", "random_sets": 2, **change}
    with pytest.raises(ConfregError, match=said):
        confreg.plan(
            "knowledge_conflict", model=str(checkpoint("llama")), sequence_length=16, **options
        )


def test_ways_are_read():
    assert [w.label for w in ways.read("alpha:0,0.5", "values")] == ["alpha:0", "alpha:0.5"]
    stored = {"ablation_value": np.array([2.0, 4.0]), "value_q05": np.array([7.0, 8.0])}
    half = ways.read("alpha:0.5", "values")[0]
    assert (half.value(stored, np.array([1])), half.slope) == (2.0, 0.5)
    assert ways.read("q05", "values")[0].value(stored, np.array([0])) == 7
    assert ways.read("-1.5", "values")[0].value(stored, np.array([0])) == -1.5
    assert mode(np.array([3.0, 3.0])) == 3.0
