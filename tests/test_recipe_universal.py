"""Universal neurons against np.corrcoef on plain transformers' activations, in float64."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
import zoo
from scipy import stats

import confreg
from confreg import ConfregError
from confreg.derive import matching

SMALL = {"sequence_length": 16, "max_tokens": 200, "progress": False}


def activations(kind, ds, layer, network=None):
    """Kept tokens' activations of a layer, (T, width) float64."""
    judge = oracle.Oracle(network or zoo.tiny(kind)[0])
    found = []
    for s in np.unique(ds["sequence"]):
        ids = torch.from_numpy(ds["token_id"].values[ds["sequence"].values == s])[None]
        found.append(judge.activations(ids, layer).flatten(0, -2))
    return torch.cat(found)[ds["keep"].values].numpy()


def crossed(a, b):
    """np.corrcoef of columns, (n, w)."""
    return np.corrcoef(a.T, b.T)[: a.shape[1], a.shape[1] :]


def run(tmp_path, words, model, other, **more):
    return confreg.run(
        "universal_neurons", model=str(model), other=other, text=words,
        out=tmp_path / "u.zarr", **{**SMALL, **more},
    ).load()  # fmt: skip


@pytest.mark.parametrize("within", [None, 0])
def test_every_number_is_numpy_s(checkpoint, words, tmp_path, within):
    others = [("gpt2", checkpoint("gpt2")), ("gemma2", checkpoint("gemma2"))]
    ds = run(
        tmp_path, words, checkpoint("llama"), ",".join(str(path) for _, path in others),
        layers=within, draws=3,
    )  # fmt: skip
    assert ds.sizes["neuron"] == 3 * 48
    assert (ds.sizes["other"], ds.sizes["other_layer"]) == (2, 6)
    kept = int(ds["keep"].sum())
    theirs = {
        (m, layer): activations(kind, ds, layer)
        for m, (kind, _) in enumerate(others) for layer in range(3)
    }  # fmt: skip
    for layer in range(3):
        here = ds.isel(neuron=ds["layer"].values == layer)
        mine = activations("llama", ds, layer)
        close = {"rtol": 0, "atol": 2e-5}
        z = stats.zscore(mine)
        np.testing.assert_allclose(here["activation_mean"], mine.mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(here["activation_deviation"], mine.std(0), rtol=1e-4)
        np.testing.assert_allclose(here["activation_skew"], (z**3).mean(0), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(here["activation_kurtosis"], (z**4).mean(0), rtol=1e-3)
        np.testing.assert_allclose(here["activation_frequency"], (mine > 0).mean(0), atol=1e-9)
        excess = []
        for m in range(2):
            layers = [layer] if within == 0 else [0, 1, 2]
            r = {each: crossed(mine, theirs[m, each]) for each in layers}
            best = np.stack([r[each].max(1) for each in layers])
            one = here.isel(other=m)
            np.testing.assert_allclose(one["match_correlation"], best.max(0), **close)
            at = best.argmax(0)
            np.testing.assert_array_equal(one["match_layer"], np.array(layers)[at])
            index = np.stack([r[each].argmax(1) for each in layers])
            np.testing.assert_array_equal(one["match_index"], index[at, np.arange(48)])
            # The baseline: the activations themselves mixed, by the same random numbers.
            drawn = []
            for draw in range(3):
                rotated = []
                for each in layers:
                    mix = matching.generator(0, m, each, draw).standard_normal((48, 48))
                    rotated.append(crossed(mine, theirs[m, each] @ mix.T).max(1))
                drawn.append(np.max(rotated, axis=0))
            np.testing.assert_allclose(one["match_baseline"], np.mean(drawn, 0), **close)
            np.testing.assert_allclose(
                one["match_baseline_spread"], np.std(drawn, 0, ddof=1), **close
            )
            excess.append(best.max(0) - np.mean(drawn, 0))
            by_layer = here["layer_correlation"].values[:, 3 * m : 3 * m + 3]
            left_out = [each for each in range(3) if each not in layers]
            assert np.isnan(by_layer[:, left_out]).all()
            np.testing.assert_allclose(by_layer[:, layers].T, best, **close)
        np.testing.assert_allclose(here["excess_correlation"], np.mean(excess, 0), **close)
        np.testing.assert_array_equal(here["universal"], here["excess_correlation"] > 0.5)
        both = here["match_correlation"].values
        np.testing.assert_allclose(here["correlation_mean"], both.mean(1), **close)
        np.testing.assert_allclose(here["correlation_min"], both.min(1), **close)
        # gpt2 and gemma2 have three layers of 48 too: the same index is defined.
        same = [np.diag(crossed(mine, theirs[m, layer])) for m in range(2)]
        np.testing.assert_allclose(here["same_correlation"].T, same, **close)
    floor = np.sqrt(2 * np.log(48 if within == 0 else 144) / kept)
    np.testing.assert_allclose(ds["chance_floor"], [floor, floor], rtol=1e-6)


def permuted(tmp_path, kind="llama"):
    """The model with the neurons of each layer in another order, and the orders."""
    network, _ = zoo.tiny(kind)
    orders = []
    for number, layer in enumerate(network.model.layers):
        order = torch.from_numpy(np.random.default_rng(number).permutation(48))
        for name in ("gate_proj", "up_proj"):
            weight = getattr(layer.mlp, name).weight
            weight.data = weight.data[order]
        layer.mlp.down_proj.weight.data = layer.mlp.down_proj.weight.data[:, order]
        orders.append(order.numpy())
    network.save_pretrained(tmp_path / "permuted")
    zoo.tokenizer().save_pretrained(tmp_path / "permuted")
    return tmp_path / "permuted", orders


def test_a_permutation_is_recovered(checkpoint, words, tmp_path):
    other, orders = permuted(tmp_path)
    ds = run(tmp_path, words, checkpoint("llama"), str(other))
    one = ds.isel(other=0)
    np.testing.assert_allclose(one["match_correlation"], 1, atol=1e-5)
    np.testing.assert_array_equal(one["match_layer"], ds["layer"])
    for layer, order in enumerate(orders):
        here = one.isel(neuron=ds["layer"].values == layer)
        np.testing.assert_array_equal(order[here["match_index"].values], here["index"])
    np.testing.assert_allclose(
        ds["excess_correlation"], 1 - one["match_baseline"].values, atol=1e-5
    )
    assert (one["match_baseline"] < 0.95).all()
    assert ds["universal"].values.sum() > 100


def test_a_model_with_itself_has_the_same_indices(checkpoint, words, tmp_path):
    ds = run(
        tmp_path, words, checkpoint("llama"), str(checkpoint("llama")), neurons="1:4-6,2:9",
        weights=False,
    )  # fmt: skip
    assert ds["neuron"].values.tolist() == ["1.4", "1.5", "1.6", "2.9"]
    np.testing.assert_allclose(ds["same_correlation"], 1, atol=1e-5)
    np.testing.assert_array_equal(ds["match_index"][:, 0], ds["index"])
    assert "role" not in ds
    assert "vocab_kurtosis" not in ds["trait"].values


def test_how_the_work_is_cut_changes_nothing(checkpoint, words, tmp_path):
    other = str(checkpoint("gpt2"))
    whole = run(tmp_path, words, checkpoint("llama"), other, weights=False)
    (tmp_path / "cut").mkdir()
    little = {"memory": 240_000, "unit_tokens": 20}
    cut = run(tmp_path / "cut", words, checkpoint("llama"), other, weights=False, **little)
    plan = confreg.plan(
        "universal_neurons", model=str(checkpoint("llama")), other=other, text=words,
        weights=False, **{**SMALL, **little},
    )  # fmt: skip
    layout = plan.layout("correlations with the other models' neurons")
    assert layout.counts[0] > 3, "no layer is cut"
    assert layout.counts[1] > 1
    assert layout.counts[2] == 1
    assert layout.passes == 2 * layout.counts[0] * layout.counts[1]
    for name in ("match_correlation", "match_baseline", "excess_correlation", "activation_skew"):
        np.testing.assert_allclose(cut[name], whole[name], atol=1e-5, rtol=1e-4, err_msg=name)
    np.testing.assert_array_equal(cut["match_index"], whole["match_index"])


def test_too_little_memory_is_a_sentence(checkpoint, words, tmp_path):
    with pytest.raises(ConfregError, match="--memory"):
        run(tmp_path, words, checkpoint("llama"), str(checkpoint("gpt2")), memory=20_000)


def test_what_cannot_be_matched_is_a_sentence(checkpoint, words, tmp_path):
    llama = checkpoint("llama")
    with pytest.raises(ConfregError, match="at least one other"):
        run(tmp_path, words, llama, "")
    with pytest.raises(ConfregError, match="named twice"):
        run(tmp_path, words, llama, f"{llama},{llama}")
    with pytest.raises(ConfregError, match="draws"):
        run(tmp_path, words, llama, str(llama), draws=0)
    with pytest.raises(ConfregError, match="has experts"):
        run(tmp_path, words, llama, str(checkpoint("mixtral")))
    zoo.save("llama", tmp_path / "other", vocab_size=140)
    zoo.tokenizer(80).save_pretrained(tmp_path / "other")
    with pytest.raises(ConfregError, match="other tokens than"):
        run(tmp_path, words, llama, str(tmp_path / "other"))
    assert not (tmp_path / "u.zarr").exists()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def matched(a, b, draws=3):
    sums = matching.Sums()
    for start in range(0, len(a), 500):
        some = slice(start, start + 500)
        sums.add(torch.from_numpy(a[some]), torch.from_numpy(b[some]))
    return matching.of_layer(sums, None, [(0, 0, 0, draw) for draw in range(draws)])


def test_unrelated_activations_have_no_excess():
    found = matched(noise(4000, 128), noise(4000, 128, seed=1), draws=8)
    excess = found["correlation"] - found["baseline"].mean(1)
    assert abs(excess.mean()) < 0.003
    assert abs(excess).max() < 0.05
    floor = matching.chance(128, 4000)
    assert 0.7 * floor < found["correlation"].mean() < floor


def test_the_baseline_is_that_of_real_rotations_within_its_spread():
    """Orthogonal matrices, which the Gaussian ones only resemble, on the activations themselves."""
    a = noise(2000, 20)
    b = a @ noise(20, 64, seed=1) + 3 * noise(2000, 64, seed=2)
    found = matched(a, b, draws=40)["baseline"]
    real = []
    for seed in range(40):
        q = stats.ortho_group.rvs(64, random_state=seed)
        real.append(crossed(a, b @ q.T).max(1))
    real = np.array(real).T
    error = np.sqrt(found.var(1, ddof=1) / 40 + real.var(1, ddof=1) / 40)
    z = (found.mean(1) - real.mean(1)) / error
    assert abs(z).max() < 4
    assert abs(found.mean() - real.mean()) < 0.01
    assert found.std() / real.std() == pytest.approx(1, abs=0.25)


def test_activations_of_rms_5_in_half_precision():
    """Sums of squares in float16 overflow, and what is published gives 0.0 for this 0.92."""
    x, e = noise(16_384), noise(16_384, seed=1)
    a = (5 * x).astype(np.float16)
    b = (5 * (0.92 * x + np.sqrt(1 - 0.92**2) * e)).astype(np.float16)
    truth = np.corrcoef(a.astype(np.float64), b.astype(np.float64))[0, 1]
    with np.errstate(over="ignore"):
        assert np.isinf((a**2).sum(dtype=np.float16)), "nothing overflows: the test is void"
    found = matched(a[:, None], b[:, None])["correlation"][0]
    assert found == pytest.approx(truth, abs=1e-5)
    assert truth == pytest.approx(0.92, abs=0.01)


def test_a_mean_far_from_zero_costs_no_digits():
    a, e = noise(3000, 4), noise(3000, 4, seed=1)
    b = (1000 + a + e).astype(np.float32)
    a = (1000 + a).astype(np.float32)
    truth = crossed(a.astype(np.float64), b.astype(np.float64)).max(1)
    np.testing.assert_allclose(matched(a, b)["correlation"], truth, atol=1e-4)


def test_a_constant_neuron_has_no_match():
    a, b = noise(300, 3), noise(300, 5, seed=1)
    a[:, 1], b[:, 2] = 0.1, -7.3
    found = matched(a.astype(np.float32), b.astype(np.float32))
    assert np.isnan(found["correlation"]).tolist() == [False, True, False]
    assert np.isnan(found["baseline"]).any(1).tolist() == [False, True, False]
    assert found["index"][1] == -1
    assert 2 not in found["index"]


def test_a_number_that_is_none_stops_the_run():
    a = noise(10, 3)
    a[4, 1] = np.inf
    with pytest.raises(ConfregError, match="1 of 30"):
        matched(a, noise(10, 2))


def test_moments_are_exact_whatever_the_blocks():
    """The published tables have frequency .249 for .158 (off by a bin), and 21 and 107 for skew 0
    and kurtosis 3 (precedence)."""
    z = -0.3 + 0.3 * noise(50_000, 1)
    other = 3 + 2 * noise(50_000, 1, seed=1)
    heavy = np.exp(noise(50_000, 1, seed=2)) + 100
    every = np.concatenate([z, other, heavy], 1)
    powers = matching.Powers()
    for start, stop in ((0, 7), (7, 8), (8, 30_000), (30_000, 50_000)):
        powers.add(torch.from_numpy(every[start:stop]))
    found = {name: values.numpy() for name, values in powers.moments().items()}
    np.testing.assert_allclose(found["activation_mean"], every.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["activation_deviation"], every.std(0), rtol=1e-10)
    np.testing.assert_allclose(found["activation_skew"], stats.skew(every), rtol=1e-8, atol=1e-9)
    kurtosis = stats.kurtosis(every, fisher=False)
    np.testing.assert_allclose(found["activation_kurtosis"], kurtosis, rtol=1e-8)
    assert found["activation_frequency"][0] == pytest.approx(stats.norm.cdf(-1), abs=0.005)
    assert found["activation_skew"][1] == pytest.approx(0, abs=0.05)
    assert found["activation_kurtosis"][1] == pytest.approx(3, abs=0.1)


def test_layers_of_like_depth():
    layers = matching.Layers.of([4, 7], within=1)
    assert layers.like(0, 5).tolist() == [True, True, False, False, *[True] * 2, *[False] * 5]
    assert layers.like(4, 5).nonzero()[0].tolist() == [2, 3, 9, 10]
    assert matching.Layers.of([4, 7]).like(2, 5).all()
    assert layers.reach([0], 5).tolist() == [2, 2]
    assert layers.reach([0, 2], 5).tolist() == [3, 3]


def test_traits_are_percentiles_of_the_marked(checkpoint, words, tmp_path):
    ds = run(tmp_path, words, checkpoint("llama"), str(checkpoint("gpt2")), above=0.05)
    marked = ds["universal"].values
    assert 5 < marked.sum() < 139
    for name in ("activation_kurtosis", "w_out_norm"):
        percentile = np.empty(144)
        for layer in range(3):
            here = np.flatnonzero(ds["layer"].values == layer)
            values = ds[name].values[here]
            percentile[here] = [stats.percentileofscore(values, v) for v in values]
        one = ds.sel(trait=name)
        np.testing.assert_allclose(one["trait_percentile"], percentile[marked].mean(), rtol=1e-4)
        p = stats.mannwhitneyu(percentile[marked], percentile[~marked]).pvalue
        np.testing.assert_allclose(one["trait_p"], p, rtol=1e-4)
    assert int(ds["marked_count"].sum()) == marked.sum()


def kept(tmp_path, checkpoint, words, kind, name, **more):
    """A store of activations."""
    return confreg.run(
        "entropy_neurons", model=str(checkpoint(kind)), text=words, out=tmp_path / name,
        effects=["loss_total"],
        **{**SMALL, "max_tokens": 60, "activations": True, **more},
    )  # fmt: skip


@pytest.mark.slow
def test_two_stores_of_activations_give_the_same_numbers(checkpoint, words, tmp_path):
    every = {"neurons": "0:0-47,1:0-47,2:0-47", "engine": "forward"}
    a = kept(tmp_path, checkpoint, words, "llama", "a.zarr", **every)
    b = kept(tmp_path, checkpoint, words, "gpt2", "b.zarr", **every)
    found = confreg.match(a, b, layers=1, seed=3, draws=2)
    ds = run(
        tmp_path, words, checkpoint("llama"), str(checkpoint("gpt2")), layers=1, seed=3, draws=2,
        max_tokens=60,
    )  # fmt: skip
    np.testing.assert_array_equal(found["neuron"], ds["neuron"])
    for name in found.data_vars:
        if ds[name].dtype.kind == "f":
            np.testing.assert_allclose(
                found[name], ds[name], rtol=1e-4, atol=1e-4, err_msg=str(name)
            )
        else:
            np.testing.assert_array_equal(found[name], ds[name], err_msg=str(name))
        assert found[name].attrs == ds[name].attrs


def test_stores_that_cannot_be_matched_are_a_sentence(checkpoint, words, tmp_path):
    few = {"neurons": "2:0-9"}
    a = kept(tmp_path, checkpoint, words, "llama", "a.zarr", **few)
    other = kept(tmp_path, checkpoint, words, "llama", "b.zarr", max_tokens=40, **few)
    without = kept(tmp_path, checkpoint, words, "llama", "c.zarr", activations=False, **few)
    with pytest.raises(ConfregError, match="other tokens"):
        confreg.match(a, other)
    with pytest.raises(ConfregError, match="--activations"):
        confreg.match(a, without)
    with pytest.raises(ConfregError, match="second dataset"):
        confreg.match(a)
    own = confreg.match(a, a)
    np.testing.assert_allclose(own["same_correlation"], 1, atol=1e-6)
    np.testing.assert_array_equal(own["match_index"][:, 0], a["index"])
