"""Neurons fixed at one value after another, against plain transformers."""

from __future__ import annotations

import declared
import numpy as np
import oracle
import pytest
import torch
import zoo

import confreg
from confreg import report
from confreg.effects import readout
from confreg.errors import ConfregError

VALUES = ["-1,0.5,3", "q05,q50,q95", "alpha:0,0.5,2", "mean,high,2"]


def run(checkpoint, words, architecture="llama", **options):
    options = {
        "neurons": "2.3,2.9;2.30", "random_sets": 2, "max_tokens": 32, "sequence_length": 16,
        "progress": False, **options,
    }  # fmt: skip
    return confreg.run("dose", model=str(checkpoint(architecture)), text=words, **options)


def fixed(way, a):
    """What a neuron's activations a (T,) are replaced by, from the definition: (slope, value)."""
    if way.startswith("alpha:"):
        alpha = float(way[6:])
        return alpha, (1 - alpha) * a.mean()
    if way.startswith("q"):
        return 0, np.percentile(a, float(way[1:]))
    if way == "mean":
        return 0, a.mean()
    if way == "high":
        return 0, min(a.mean() + 3 * a.std(), a.max())
    return 0, float(way)


@pytest.mark.parametrize(
    ("architecture", "values", "engine", "layer"),
    [
        ("llama", VALUES[0], "auto", 2),
        ("llama", VALUES[2], "auto", 2),
        ("gpt2", VALUES[1], "auto", 2),
        ("gemma2", VALUES[2], "auto", 2),
        ("llama", VALUES[2], "forward", 1),
        ("llama", VALUES[3], "auto", 2),
    ],
)
def test_curves_are_the_oracle_s(checkpoint, words, architecture, values, engine, layer):
    ds = run(
        checkpoint, words, architecture, values=values, engine=engine, layer=layer,
        neurons=f"{layer}.3,{layer}.9;{layer}.30",
    ).load()  # fmt: skip
    declared.validate(ds)
    assert ds.attrs["engine"] == ("exact" if engine == "auto" else engine)
    judge = oracle.Oracle(zoo.tiny(architecture)[0])
    texts = [
        torch.from_numpy(ds["token_id"].values[ds["sequence"].values == s])[None]
        for s in np.unique(ds["sequence"])
    ]
    active = torch.cat([judge.activations(ids, layer).flatten(0, -2) for ids in texts]).numpy()
    keep, path = ds["keep"].values, judge.down.format(layer)
    listed = values.removeprefix("alpha:").split(",")
    written = [f"alpha:{v}" if values.startswith("alpha") else v for v in listed]
    for curve in ("chosen-0", "chosen-1", "random-0.1"):
        for at, way in enumerate(written):
            label = f"{curve}:{way}"
            members = ds["index"].values[ds["member"].sel(set=label).values]
            slopes, constants = zip(*(fixed(way, active[:, i]) for i in members))

            def edit(hidden, members=members, slopes=slopes, constants=constants):
                for i, slope, value in zip(members, slopes, constants):
                    hidden[..., int(i)] = slope * hidden[..., int(i)] + value
                return hidden

            truth = {}
            for ids in texts:
                (before, s), (after, s2) = (judge.scaled(ids, e) for e in (None, {path: edit}))
                p, p2 = before.softmax(-1), after.softmax(-1)
                reciprocal = [1 / (1 + oracle.rank(one, ids).double()) for one in (before, after)]
                for name, value in {
                    "loss_total": oracle.loss(after, ids) - oracle.loss(before, ids),
                    "entropy_total": oracle.entropy(after) - oracle.entropy(before),
                    "confidence_total": p2.amax(-1) - p.amax(-1),
                    "reciprocal_rank_total": reciprocal[1] - reciprocal[0],
                    "norm_scale_total": s2 - s,
                }.items():
                    truth.setdefault(name, []).append(value.flatten())
            for name, parts in truth.items():
                expected = torch.cat(parts).numpy()[keep]
                mine = ds["effects"].sel(set=label, effect=name).values[keep]
                np.testing.assert_allclose(mine, expected, atol=1e-4, err_msg=f"{label} {name}")
                response = ds["response"].sel(curve=curve, effect=name)[at]
                np.testing.assert_allclose(response, expected.mean(), atol=1e-4)
            if curve == "chosen-1":
                own = ds["fixed_to"].sel(neuron=f"{layer}.30")[at]
                np.testing.assert_allclose(own, constants[0], rtol=1e-5, atol=1e-5)


def test_doing_nothing_does_nothing(checkpoint, words):
    ds = run(checkpoint, words, values="alpha:0,1").load()
    assert ds["value"].values.tolist() == [0.0, 1.0]
    assert np.abs(ds["response"].sel(value=1.0)).max() < 1e-6
    assert np.abs(ds["response"].sel(value=0.0)).max() > 1e-3


def test_what_a_set_writes_is_found_once_for_all_values(checkpoint, words, monkeypatch):
    calls, plain = [], readout.Readout.directions

    def counted(self, w):
        calls.append(len(w))
        return plain(self, w)

    monkeypatch.setattr(readout.Readout, "directions", counted)
    run(checkpoint, words, values="-2,-1,0,1,2")
    assert len(calls) == 2 * (1 + 2)  # one a set, of five values


def test_the_page_draws_curves(checkpoint, words, tmp_path):
    ds = run(checkpoint, words, values="-1,0,1", out=tmp_path / "o.zarr")
    page = report.write(ds, tmp_path / "o.html").read_text()
    assert "Dose and response" in page
    assert "dose-norm_scale_total" in page


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("q101", "'q101' is not understood"),
        ("alpha:q05", "'q05' is not understood"),
        ("beta:1", "is not understood"),
        ("", "'' is not understood"),
        ("1,1.0", "names a value twice"),
    ],
)
def test_values_that_are_none(checkpoint, words, values, said):
    with pytest.raises(ConfregError, match=said):
        run(checkpoint, words, values=values)
