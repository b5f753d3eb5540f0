"""Two stores side by side, against numpy, scipy and every document drawn by hand."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import report_data
import test_cli
import xarray as xr
import zoo
from scipy import stats

import confreg
from confreg import ConfregError
from confreg.report import page, sections


def pair(tmp_path, words, checkpoint, **more):
    """Runs of a model and of the same after its weights have moved a little."""
    import torch

    network, tokenizer = zoo.tiny("llama")
    generator = torch.Generator().manual_seed(7)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += 0.05 * parameter.data.std().nan_to_num(1.0) * noise
    network.save_pretrained(tmp_path / "moved")
    tokenizer.save_pretrained(tmp_path / "moved")
    options = {
        "text": words, "sequence_length": 16, "max_tokens": 180, "progress": False,
        "activations": True, "neurons": "2:0-11", **more,
    }  # fmt: skip
    return tuple(
        confreg.run("entropy_neurons", model=str(m), out=tmp_path / f"{n}.zarr", **options).load()
        for n, m in enumerate((checkpoint("llama"), tmp_path / "moved"))
    )


def test_every_number_is_numpy_s(checkpoint, words, tmp_path):
    a, b = pair(tmp_path, words, checkpoint)
    found = confreg.compare(a, b, top=4, draws=300, seed=3)
    shape = {"layers": 3, "width": 32, "neurons": 48, "heads": 4}
    assert {name: a.attrs[f"model_{name}"] for name in shape} == shape
    keep = a["keep"].values
    va, vb = (ds["activation"].values[:, keep].astype(float) for ds in (a, b))
    close = {"rtol": 1e-5, "atol": 1e-7}
    r = [np.corrcoef(x, y)[0, 1] for x, y in zip(va, vb)]
    np.testing.assert_allclose(found["activation_correlation"], r, **close)
    shift = (vb.mean(1) - va.mean(1)) / va.std(1)
    np.testing.assert_allclose(found["activation_shift"], shift, **close)
    np.testing.assert_allclose(found["deviation_ratio"], vb.std(1) / va.std(1), **close)
    fires = (vb > 0).mean(1) - (va > 0).mean(1)
    np.testing.assert_allclose(found["frequency_change"], fires, **close)
    ea, eb = (ds["effects"].values[:, keep].astype(float) for ds in (a, b))
    known = np.isfinite(ea) & np.isfinite(eb)
    assert known.all()
    np.testing.assert_allclose(found["effect_mean_change"], (eb - ea).mean(1), **close)
    np.testing.assert_allclose(
        found["effect_abs_mean_change"], (np.abs(eb) - np.abs(ea)).mean(1), **close
    )
    for name in ("te", "mediated", "w_out_norm", "logit_var"):
        np.testing.assert_allclose(found[f"{name}_change"], b[name] - a[name], rtol=1e-5, atol=1e-7)
        row = found.sel(variable=name)
        assert float(row["rank_correlation"]) == pytest.approx(stats.spearmanr(a[name], b[name])[0])
        ks = stats.ks_2samp(a[name], b[name])
        assert float(row["ks"]) == pytest.approx(ks.statistic)
        tops = [set(np.argsort(-ds[name].values)[:4].tolist()) for ds in (a, b)]
        shared = len(tops[0] & tops[1])
        assert float(row["top_shared"]) == shared
        assert float(row["top_p"]) == pytest.approx(stats.hypergeom.sf(shared - 1, 12, 4, 4))
    loss = found.sel(prediction="loss")
    change = np.nanmean(b["loss"].values[keep].astype(float) - a["loss"].values[keep])
    assert float(loss["token_mean_change"]) == pytest.approx(change, rel=1e-5)
    # Intervals: documents drawn one by one, tokens of each looked up.
    what = "document" if "document" in a.coords else "sequence"
    document = a[what].values[keep]
    names = np.unique(document)
    weights = np.random.default_rng(3).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=300
    )
    drawn = {"shift": [], "te": [], "mediated": [], "loss": []}
    total, direct = (list(a["effect"].values).index(n) for n in ("loss_total", "loss_direct"))
    losses = b["loss"].values[keep].astype(float) - a["loss"].values[keep]
    for draw in weights:
        rows = np.concatenate(
            [np.tile(np.flatnonzero(document == n), k) for n, k in zip(names, draw) if k]
        )
        drawn["shift"].append((vb - va)[:, rows].mean(1) / va.std(1))
        te = [np.abs(e[:, rows, total]).mean(1) for e in (ea, eb)]
        de = [np.abs(e[:, rows, direct]).mean(1) for e in (ea, eb)]
        drawn["te"].append(te[1] - te[0])
        drawn["mediated"].append(de[0] / te[0] - de[1] / te[1])
        drawn["loss"].append(losses[rows].mean())
    for end, percent in (("low", 2.5), ("high", 97.5)):
        q = {name: np.percentile(v, percent, axis=0) for name, v in drawn.items()}
        np.testing.assert_allclose(found[f"activation_shift_{end}"], q["shift"], **close)
        np.testing.assert_allclose(found[f"te_change_{end}"], q["te"], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(
            found[f"mediated_change_{end}"], q["mediated"], rtol=1e-4, atol=1e-6
        )
        assert float(loss[f"token_mean_{end}"]) == pytest.approx(q["loss"], rel=1e-5)


def made(seed=0, **attrs):
    ds = report_data.synthetic(seed=seed)
    usual = {"complete": 1, "recipe": "entropy_neurons", "model_architecture": "llama",
             "model_layers": 12, "model_width": 64, "model_neurons": 30, "corpus_sha256": "1",
             "mediated_total": "loss_total", "mediated_direct": "loss_direct"}  # fmt: skip
    ds = ds.assign_attrs(usual | attrs)
    return ds if "token_id" in ds else ds.assign_coords(token_id=("token", ds["token"].values))


def test_the_same_store_twice_has_no_change_and_intervals_at_zero():
    ds = made()
    found = confreg.compare(ds, ds, draws=50)
    for name in ("te_change", "te_change_low", "te_change_high", "activation_shift_high"):
        np.testing.assert_array_equal(found[name], 0)
    np.testing.assert_allclose(found["activation_correlation"], 1)
    assert (found["top_jaccard"] == 1).all()


@pytest.mark.parametrize(
    ("changes", "left_out"),
    [
        ({"model_layers": 24}, "different shapes"),
        (
            {"model_width": 128},
            "shapes .llama, 12 layers, width 64, 30 neurons a layer; .*width 128",
        ),
        ({"model_neurons": 60}, "shapes .*, 30 neurons a layer; .*, 60 neurons a layer"),
        (
            {"mean_from": "b.txt", "mean_from_sha256": "0123456789"},
            r"te, .*ablation_value: mean_from is not given and b\.txt \(01234567\)",
        ),
        ({"corpus_sha256": "2"}, "token by token: the texts are different"),
        ({"ablation": "zero"}, "te, .*: ablation is .* and zero"),
        ({"null_dims": 7}, "null_fraction: null_dims is .* and 7"),
    ],
)
def test_what_cannot_be_compared_is_left_out_by_name(changes, left_out):
    a, b = made(), made(seed=0, **changes)
    found = confreg.compare(a, b, draws=20)

    assert re.search(left_out, found.attrs["left_out"])
    if any(name.startswith("model_") for name in changes):
        assert "te_change" not in found
        assert "ks" in found
        assert "rank_correlation" not in found
    if "corpus_sha256" in changes:
        assert "te_change" in found
        assert "te_change_low" not in found
        assert "activation_correlation" not in found
    if "ablation" in changes or "mean_from" in changes:
        assert "te_change" not in found
        assert "effect_mean_change" not in found
        assert "w_out_norm_change" in found


def test_old_stores_that_do_not_say_their_models_shape_are_compared():
    a, old = made(), made()
    for name in ("model_width", "model_neurons"):
        del old.attrs[name]
    assert "te_change" in confreg.compare(a, old, draws=20)
    assert "te_change" in confreg.compare(old, old, draws=20)
    other = old.isel(component=slice(32))
    assert "width 64; llama, 12 layers, width 32" in confreg.compare(old, other).attrs["left_out"]


def test_effects_about_other_frequencies_are_not_compared():
    names = ["loss_total", "loss_frequency_direct", "entropy_total", "kl_frequency_total"]
    a, b = (
        made(counts=f"{n}.csv", counts_sha256=n * 10, mediated_direct=names[1]).assign_coords(
            effect=names
        )
        for n in "12"
    )
    found = confreg.compare(a, b, draws=20)
    said = r"counts is 1\.csv \(11111111\) and 2\.csv \(22222222\)"
    assert re.search(f"de, mediated, te_mediated: {said}", found.attrs["left_out"])
    assert re.search(f"loss_frequency_direct, kl_frequency_total: {said}", found.attrs["left_out"])
    assert found["effect"].values.tolist() == ["loss_total", "entropy_total"]
    assert found["effect_units"].dims == ("effect",)
    assert np.isfinite(found["te_change"]).all()
    assert not {"de_change", "mediated_change", "mediated_change_low"} & set(found)
    assert "mediated_change_low" in confreg.compare(a, a, draws=20)
    few = confreg.compare(a, a.sel(effect=names[2:]), draws=20)
    assert few["effect"].values.tolist() == names[2:]


def test_of_one_document_changes_are_there_and_no_intervals():
    a = made().isel(token=slice(40))
    found = confreg.compare(a, made(seed=1).isel(token=slice(40)).assign_coords(a.coords))
    assert "intervals: the kept tokens are of one sequence" in found.attrs["left_out"]
    assert "intervals" not in found.attrs["compared"]
    for name in ("te_change", "activation_shift", "effect_mean_change", "token_mean_change"):
        assert np.isfinite(found[name]).all()
    assert not [name for name in found if str(name).endswith(("_low", "_high"))]


def test_a_constant_activation_is_no_scale():
    a, b = made(), made(seed=1)
    a["activation"][0] = 0.1
    a["activation"][1, 4:] = np.nan
    a["activation"][2, 5:] = np.nan
    a["te"][:5] = b["te"][:5] * [0.9, 0.95, 0.99, 1.05, 1.1]
    some = [ds.isel(neuron=slice(5)) for ds in (a, b.assign_coords(a.coords))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of scipy's, where a p is 1 but for rounding
        found = confreg.compare(*some, draws=20)
    for name in ("activation_shift", "activation_shift_low", "deviation_ratio",
                 "activation_correlation"):  # fmt: skip
        np.testing.assert_array_equal(np.isnan(found[name]), [True, True, False, False, False])
        assert np.isfinite(found[name][2:]).all()


def with_shares(ds, seed):
    """The dataset with effects whose share is one of means."""
    draw, (n, t) = np.random.default_rng(seed), ds["effects"].shape[:2]
    whole = draw.lognormal(-6, 2, (n, t))
    left = whole * draw.beta(4, 2, (n, t))
    names = ["divergence_total", "divergence_tempered_total", "temperature_share", "predicted"]
    cube = np.stack([whole, left, 1 - left / whole, draw.integers(0, 9, (n, t))], -1)
    cube[0, 7, 2] = np.nan  # too small a divergence to be shared
    more = xr.Variable(ds["effects"].dims, cube)
    both = xr.Variable.concat([ds["effects"].variable, more], "effect")
    found = ds.drop_dims("effect").assign(effects=both)
    found = found.assign_coords(effect=[*ds["effect"].values.tolist(), *names])
    return found.assign_attrs(effects_reduced="temperature_share predicted")


def test_a_temperature_share_is_of_means():
    a, b = with_shares(made(), 1), with_shares(made(), 2)
    found = confreg.compare(a, b, draws=20, seed=3).sel(effect="temperature_share")
    sums = [
        ds["effects"].isel(token=ds["keep"].values).sel(effect=name).sum("token").values
        for ds in (a, b) for name in ("divergence_tempered_total", "divergence_total")
    ]  # fmt: skip
    change = sums[0] / sums[1] - sums[2] / sums[3]
    for name in ("effect_mean_change", "effect_abs_mean_change"):
        np.testing.assert_allclose(found[name], change, rtol=1e-6)
        assert (found[f"{name}_low"] < found[f"{name}_high"]).all()
    # Of a share of which a store does not keep what it follows from, and of what has no mean.
    bare = [ds.drop_sel(effect="divergence_total") for ds in (a, b)]
    found = confreg.compare(*bare, draws=20)
    assert "temperature_share, predicted: no mean of the tokens" in found.attrs["left_out"]
    assert np.isnan(
        found["effect_mean_change"].sel(effect=["temperature_share", "predicted"])
    ).all()
    assert np.isfinite(found["effect_mean_change"].sel(effect="loss_total")).all()


def test_other_things_are_refused_in_a_sentence():
    a = made()
    with pytest.raises(ConfregError, match="different recipes, entropy_neurons and census"):
        confreg.compare(a, made(recipe="census"))
    with pytest.raises(ConfregError, match="second store is not finished"):
        confreg.compare(a, made(complete=0))
    bare = xr.Dataset(attrs=a.attrs)
    with pytest.raises(
        ConfregError, match="first store is about neurons and the second about nothing"
    ):
        confreg.compare(a, bare)


def test_neurons_are_matched_by_name_whatever_their_order():
    a = made()
    order = np.random.default_rng(0).permutation(a.sizes["neuron"])[:20]
    found = confreg.compare(a, a.isel(neuron=order), draws=20)
    assert found.sizes["neuron"] == 20
    np.testing.assert_array_equal(found["te_change"], 0)
    np.testing.assert_allclose(found["activation_correlation"], 1)
    assert "10 neurons that only the first store has" in found.attrs["left_out"]


def test_the_command_prints_a_table_and_writes_a_page(checkpoint, words, tmp_path, capsys):
    pair(tmp_path, words, checkpoint)
    stores = [str(tmp_path / f"{n}.zarr") for n in range(2)]
    html = str(tmp_path / "c.html")
    assert test_cli.call("compare", *stores, "--draws", "50", "-o", html) == 0
    said = capsys.readouterr().out
    assert "12 neurons, by name" in said
    assert "w_out_norm" in said
    assert "Side by side" in (tmp_path / "c.html").read_text()
    assert test_cli.call("compare", stores[0], str(tmp_path / "none.zarr")) == 2


def test_output_weights_that_a_census_keeps_are_compared(checkpoint, tmp_path):
    found = [
        confreg.run(
            "census", model=str(checkpoint("llama")), out=tmp_path / f"{n}.zarr", progress=False,
            neurons=neurons, keep_weights=True,
        ).load()
        for n, neurons in enumerate(("2:0-5,0:1-3", "2:3-7"))
    ]  # fmt: skip
    down = zoo.tiny("llama")[0].model.layers[2].mlp.down_proj.weight.detach().numpy().T
    np.testing.assert_allclose(found[0].sel(neuron="2.4")["w_out"], down[4], atol=1e-6)
    both = confreg.compare(*found)
    assert both["neuron"].values.tolist() == ["2.3", "2.4", "2.5"]
    np.testing.assert_allclose(both["w_out_cosine"], 1, atol=1e-6)


def test_the_page_says_what_was_compared():
    pair = made(), made(seed=1, null_dims=7)
    for name, ds in zip("ab", pair):
        ds.encoding["source"] = f"/runs/{name}.zarr"
    found = confreg.compare(*pair, draws=20)
    html = page.render(found, sections.Options())
    assert "Left out: " in html
    assert "30 neurons, by name" in html
    assert f"<dt>First</dt><dd>a.zarr ({pair[0].attrs['model'].partition('<')[0]}" in html
    assert f"<dt>Text</dt><dd>{pair[0].attrs['corpus']}</dd>" in html
    titles = re.findall(r'-title">(.*?)</h2>', html)
    assert titles.count("Predictions") == 1
    assert "Variables" not in titles
    headings = re.findall(r"<button[^>]*>(.*?)</button>", html)
    assert {"TE, first (nats)", "Δ TE (nats)", "LogitVar, second", "p (shared)"} <= {*headings}
    assert not [heading for heading in headings if heading in ("te first", "logit var second")]
