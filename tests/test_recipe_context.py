"""Confidence in context against plain transformers."""

from __future__ import annotations

import declared
import numpy as np
import oracle
import pytest
import torch
import zoo

import confreg
from confreg.errors import ConfregError

NEURONS = (3, 9, 30)


def run(checkpoint, words, out, architecture="llama", **options):
    layer = options.get("layer", 2)
    options = {"neurons": ",".join(f"{layer}.{i}" for i in NEURONS), "progress": False, **options}
    return confreg.run(
        "confidence_in_context", model=str(checkpoint(architecture)), text=words, out=out,
        sequence_length=16, max_tokens=48, **options,
    ).load()  # fmt: skip


def reciprocal_rank(logits, ids):
    """1/(rank + 1) of the next token; also how far the closest other logit is."""
    following = ids.roll(-1, 1)[..., None]
    away = logits - logits.gather(-1, following)
    margin = away.abs().scatter(-1, following, float("inf")).amin(-1)
    found = 1 / (1 + (away > 0).sum(-1).double())
    found[:, -1] = float("nan")
    return found[0], margin[0]


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("layer", [2, 1])
def test_tokens_above_the_mean_are_the_oracle_s(checkpoint, words, tmp_path, architecture, layer):
    ds = run(checkpoint, words, tmp_path / "o.zarr", architecture, layer=layer)
    declared.validate(ds)
    judge = oracle.Oracle(zoo.tiny(architecture)[0])
    texts = [
        torch.from_numpy(ds["token_id"].values[ds["sequence"].values == s])[None]
        for s in np.unique(ds["sequence"])
    ]
    active = torch.cat([judge.activations(ids, layer).flatten(0, -2) for ids in texts])
    active = active[:, NEURONS].T
    mean = active.mean(1)
    np.testing.assert_allclose(ds["mean_activation"], mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ds["activation"], active, atol=1e-4)
    above = (active > mean[:, None]).numpy()
    clear = (active - mean[:, None]).abs().numpy() > 1e-4
    np.testing.assert_array_equal(ds["above_mean"].values[clear], above[clear])

    keep = ds["keep"].values
    for i, neuron in enumerate(NEURONS):
        rows = {"loss_total": [], "entropy_total": [], "reciprocal_rank_total": []}
        margins = []
        for ids in texts:
            clean, _ = judge.forward(ids)
            ablated = judge.replaced(ids, layer, {neuron: mean[i]})
            rows["loss_total"].append((oracle.loss(ablated, ids) - oracle.loss(clean, ids))[0])
            rows["entropy_total"].append((oracle.entropy(ablated) - oracle.entropy(clean))[0])
            (before, near), (after, close) = (reciprocal_rank(x, ids) for x in (clean, ablated))
            rows["reciprocal_rank_total"].append(after - before)
            margins.append(torch.minimum(near, close))
        certain = torch.cat(margins).numpy() > 1e-4
        for name, parts in rows.items():
            truth = torch.cat(parts).numpy()
            mine = ds["effects"].isel(neuron=i).sel(effect=name).values
            np.testing.assert_array_equal(np.isnan(mine), np.isnan(truth))
            np.testing.assert_allclose(mine[certain], truth[certain], atol=1e-4, err_msg=name)
            # The last position has no loss: it is in no mean, and no zero is in its place.
            mean_above = truth[above[i] & keep].mean()
            found = ds["effect_mean_above"].isel(neuron=i).sel(effect=name)
            if certain.all() or name != "reciprocal_rank_total":
                np.testing.assert_allclose(found, mean_above, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(ds["above_share"], (above & keep).sum(1) / keep.sum(), atol=1e-6)


def test_the_mean_says_which_tokens_it_is_over(checkpoint, words, tmp_path):
    ds = run(checkpoint, words, tmp_path / "k.zarr", mean_over="kept")
    kept = ds["activation"].values[:, ds["keep"].values]
    np.testing.assert_allclose(ds["mean_activation"], kept.mean(1), atol=1e-6)
    assert ds.attrs["mean_over"] == "kept"
    every = ds["activation"].values.mean(1)
    assert np.abs(every - ds["mean_activation"].values).max() > 1e-4


def test_tokens_without_a_next_one_are_in_no_mean_of_the_loss(checkpoint, words, tmp_path):
    ds = run(checkpoint, words, tmp_path / "a.zarr", keep=["all"])
    assert ds["keep"].all()
    above = ds["effects"].where(ds["above_mean"])
    assert (above.count("token").sel(effect="loss_total") <
            above.count("token").sel(effect="entropy_total")).any()  # fmt: skip
    np.testing.assert_allclose(ds["effect_mean_above"], above.mean("token"), rtol=1e-4, atol=1e-7)


def test_another_ablation_keeps_the_mean_that_above_is_about(checkpoint, words, tmp_path):
    ds = run(checkpoint, words, tmp_path / "z.zarr", ablation="zero")
    assert (ds["ablation_value"] == 0).all()
    np.testing.assert_allclose(ds["mean_activation"], ds["activation"].mean("token"), atol=1e-6)


def test_reducing_over_tokens_is_refused(checkpoint, words, tmp_path):
    with pytest.raises(ConfregError, match="entropy_neurons"):
        run(checkpoint, words, tmp_path / "r.zarr", reduce="token")
