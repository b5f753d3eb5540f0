"""Every recipe that takes neurons of routed experts, against numbers made of what it stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zoo

import confreg
from confreg import ConfregError

OPTIONS = {"sequence_length": 16, "max_tokens": 96, "progress": False}
CHOSEN = "2.0.0,2.1.0,2.3.5"


@pytest.fixture(scope="module")
def run(tmp_path_factory, words):
    model = str(zoo.save("qwen3_moe", tmp_path_factory.mktemp("experts") / "qwen3_moe"))

    def of(recipe, neurons=CHOSEN, text=words, **options):
        out = tmp_path_factory.mktemp(recipe) / "o.zarr"
        given = {**OPTIONS, "model": model, "text": text, "neurons": neurons, **options}
        return confreg.run(recipe, out=out, **given).load()

    return of


@pytest.fixture(scope="module")
def layer(run):
    """Activations of the last layer's 48 neurons, (n, T), NaN where they are not there."""
    ds = run("confidence_in_context", ",".join(f"2.{expert}.0-7" for expert in range(6)))
    assert ds["index"].values.tolist() == list(range(48))
    return ds["activation"].values


@pytest.fixture(scope="module")
def short(words, tmp_path_factory):
    """A text from which some experts' neurons have no mean."""
    path = tmp_path_factory.mktemp("short") / "short.txt"
    path.write_text(" ".join(words[0].split()[:2]))
    return str(path)


def p_of(ds, size):
    """By the definition, of magnitudes (set, ...): NaN of those that are no chosen set."""
    kind, alike = ds["set_kind"].values, [
        ds[n].values for n in ("set_control", "set_deviation", "set_way", "set_clipped") if n in ds
    ]  # fmt: skip
    found = np.full(size.shape, np.nan)
    for i in np.flatnonzero(kind == "chosen"):
        same = [j for j in np.flatnonzero(kind == "random") if all(w[j] == w[i] for w in alike)]
        for at in np.ndindex(size.shape[1:]):
            others = [size[(j, *at)] for j in same if not np.isnan(size[(j, *at)])]
            if others and not np.isnan(size[(i, *at)]):
                as_much = sum(each >= size[(i, *at)] for each in others)
                found[(i, *at)] = (1 + as_much) / (1 + len(others))
    return found


def sizes(ds):
    """Mean absolute effects over kept tokens, from the cube, NaN of what is not known."""
    kept = np.abs(ds["effects"].values[:, ds["keep"].values].astype(float))
    entropy = kept[..., list(ds["effect"].values).index("entropy_total")]
    kept[np.isnan(entropy).any(1)] = np.nan
    return np.array([[column[~np.isnan(column)].mean() if not np.isnan(column).all() else np.nan
                      for column in one.T] for one in kept])  # fmt: skip


def held(ds):
    """Effects, and p values beside them, are those of the stored cube; none is 0 throughout."""
    size = sizes(ds)
    np.testing.assert_allclose(ds["effect_abs_mean"], size, rtol=1e-4, atol=1e-9)
    chosen = ds["set_kind"].values == "chosen"
    assert (size[chosen] > 0).all()
    p = ds["p_random"].values
    np.testing.assert_allclose(p, p_of(ds, size), rtol=1e-6)
    assert np.isfinite(p[chosen]).all()


@pytest.mark.parametrize("layer", [2, 1])
def test_means_where_neurons_are_there_are_of_these_tokens_alone(run, layer):
    """With tokens that no token follows among them; an earlier layer has effects elsewhere too."""
    ds = run(
        "entropy_neurons", CHOSEN.replace("2.", f"{layer}.", 3), activations=True, keep=["all"],
        effects=["temperature_share", "entropy_total"], layer=layer, engine="forward",
    )  # fmt: skip
    there = ~np.isnan(ds["activation"].values)
    np.testing.assert_array_equal(ds["routed_tokens"], there.sum(1))
    cube = ds["effects"].where(there[..., None]).astype(float)
    kl, left = (cube.sel(effect=f"divergence{n}_total").sum("token") for n in ("", "_tempered"))
    for name in ("effect_mean_routed", "effect_abs_mean_routed"):
        for effect in ("loss_total", "loss_direct", "entropy_total"):
            each = cube.sel(effect=effect)
            expected = (np.abs(each) if "abs" in name else each).mean("token")
            assert (np.abs(expected) > 1e-6).all()
            np.testing.assert_allclose(ds[name].sel(effect=effect), expected, rtol=1e-4, atol=1e-8)
        share = ds[name].sel(effect="temperature_share")
        np.testing.assert_allclose(share, 1 - left / kl, rtol=1e-4)
    if layer == 2:
        own = ds["effects"].sel(effect=["loss_total", "loss_direct", "entropy_total"])
        away = own.where(~there[..., None])
        assert (away.fillna(0) == 0).all()
        assert (ds["mediated"].values < 1).all()
        assert np.isfinite(ds["mediated"]).all()


def test_above_its_mean_a_neuron_is_where_it_is_there(run, layer):
    ds = run("confidence_in_context")
    active = layer[[0, 8, 29]]
    np.testing.assert_array_equal(ds["activation"], active)
    mean = np.nanmean(active.astype(float), axis=1)
    np.testing.assert_allclose(ds["mean_activation"], mean, rtol=1e-6)
    above = active > mean[:, None]
    np.testing.assert_array_equal(ds["above_mean"], above)
    keep = ds["keep"].values
    share = (above & keep).sum(1) / keep.sum()
    np.testing.assert_allclose(ds["above_share"], share, rtol=1e-6)
    assert (share > 0.02).all()
    expected = ds["effects"].where((above & keep)[..., None]).mean("token")
    np.testing.assert_allclose(ds["effect_mean_above"], expected, rtol=1e-4)


def test_a_dose_is_of_the_activations_that_there_are(run, layer):
    ds = run("dose", "2.0.0,2.1.0;2.3.5", values="q25,q50,mean", random_sets=5, controls="random")
    held(ds)
    index = ds["index"].values
    expected = [np.nanquantile(layer[index], q, axis=1) for q in (0.25, 0.5)]
    expected.append(np.nanmean(layer[index], axis=1))
    np.testing.assert_allclose(ds["fixed_to"], np.stack(expected, 1), rtol=1e-4, atol=1e-6)
    assert (np.abs(ds["response_abs"]).sel(effect="loss_total") > 0).all()


def test_answers_to_a_conflict_are_of_sets_that_are_there(run):
    documents = [
        {"prompt": f"w{i} w{i + 3} w{5 * i % 80} w{i + 1}", "target": [f" w{i + 40}"],
         "contrast": f" w{i + 10}"} for i in range(2, 14)
    ]  # fmt: skip
    ds = run(
        "knowledge_conflict", "2.0.0,2.1.0,2.2.0,2.3.5,2.4.0", documents, random_sets=4,
        ways="median,high,30",
    )  # fmt: skip
    seen = run("confidence_in_context", ",".join(ds["neuron"].values), documents, keep=["all"])
    active = seen["activation"].values.astype(float)
    np.testing.assert_allclose(ds["value_median"], np.nanmedian(active, 1), rtol=1e-4, atol=1e-6)
    highest = np.nanmean(active, 1) + 3 * np.nanstd(active, 1)
    expected = np.minimum(highest, np.nanmax(active, 1))
    np.testing.assert_allclose(ds["value_high"], expected, rtol=1e-4, atol=1e-6)
    moved = ds["entropy_change"].sel(set="chosen-0:30")
    assert np.abs(moved).max() > 0.01
    score = ds["transition_score"].values.astype(float)
    np.testing.assert_allclose(ds["transition_p_random"], p_of(ds, score), rtol=1e-6)


def test_how_well_calibrated_it_is_without_a_neuron(run):
    ds = run("calibration", mean_over="kept")
    kept, change = ds["keep"].values, ds["effects"]
    for name, column in (("accuracy", "correct"), ("mean_confidence", "confidence")):
        after = ds[column].values + change.sel(effect=f"{column}_total").values
        np.testing.assert_allclose(ds[name], after[:, kept].mean(1), rtol=1e-4)
    assert (ds["mean_confidence"] != ds["unablated_mean_confidence"]).all()


def test_a_neuron_near_the_unigrams(run):
    ds = run("token_frequency_neurons")
    for name, effect in (("te", "loss_total"), ("de", "loss_frequency_direct")):
        cube = np.abs(ds["effects"].sel(effect=effect).values[:, ds["keep"].values])
        np.testing.assert_allclose(ds[name], cube.mean(1), rtol=1e-4)
    assert (ds["te"] > 1e-5).all()


@pytest.mark.parametrize("length", [4, 24])
def test_a_repeat_shifts_what_is_there_both_times(run, length):
    ds = run("induction", "2.0.0,2.1.0,2.3.5", length=length, random_sets=6, sequence_length=64)
    held(ds)
    active, compared = ds["activation"].values.astype(float), ds["compared"].values
    places = {}
    for t in np.flatnonzero(compared):
        at = int(ds["sequence"][t]), int(ds["aligned"][t])
        places.setdefault(at, [None, None])[int(ds["occurrence"][t])] = t
    pairs = np.array([both for both in places.values() if None not in both])
    sigma = []
    for row in active:
        both = row[pairs][~np.isnan(row[pairs]).any(1)]
        sigma.append((both[:, 1] - both[:, 0]).mean() / both.std() if len(both) else np.nan)
    np.testing.assert_allclose(ds["shift_sigma"], sigma, rtol=1e-4, atol=1e-6)
    kind, member = ds["set_kind"].values, ds["member"].values.astype(bool)
    chosen = member[kind == "chosen"].any(0)
    random = np.array(sigma)[~chosen]
    random = np.abs(random[~np.isnan(random)]).astype(np.float32)
    own = np.abs(ds["shift_sigma"].values[chosen])
    known = ~np.isnan(own)
    expected = [(1 + (random >= one).sum()) / (1 + len(random)) for one in own[known]]
    np.testing.assert_allclose(ds["shift_p"].values[chosen][known], expected, rtol=1e-6)
    assert known.any()
    assert np.isnan(ds["shift_p"].values[chosen][~known]).all()


def test_heads_move_neurons_where_they_are_there_before_and_after(run):
    ds = run(
        "bos_ablation", heads="0.1,1.3", length=7, score_length=6, score_sequences=2,
        random_sets=3, controls="any", activations=True,
    )  # fmt: skip
    change = ds["activation_change"].values[:, ds["keep"].values].astype(float)  # (S, T, n)
    count = (~np.isnan(change)).sum(1)
    np.testing.assert_array_equal(ds["activation_change_count"], count)
    assert len(np.unique(count)) > 1
    assert (count > 0).any()
    total = np.nansum(change, 1)
    size = np.where(count > 0, np.nansum(np.abs(change), 1) / np.maximum(count, 1), np.nan)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    np.testing.assert_allclose(ds["activation_change_mean"], mean, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(ds["activation_change_abs_mean"], size, rtol=1e-4, atol=1e-7)
    stored = ds["activation_change_abs_mean"].values
    np.testing.assert_allclose(ds["activation_p_random"], p_of(ds, stored), rtol=1e-6)
    both = [ds["compared"].values & (ds["occurrence"].values == n) for n in (0, 1)]
    first, second = (np.nanmean(ds["activation"].values[:, some], 1) for some in both)
    np.testing.assert_allclose(ds["taken_back"], -mean / (second - first), rtol=1e-3, atol=1e-5)


def test_what_replaces_a_neuron_may_not_be_known(run, short, layer):
    """Then no engine makes 0 of it, and where the neuron is not there it does nothing."""
    names = ",".join(f"2.{expert}.0" for expert in range(6))
    given = {"mean_from": short, "effects": ["entropy_total"]}
    series, exact, forward = (
        run("entropy_neurons", names, engine=engine, **given)
        for engine in ("series", "exact", "forward")
    )
    there = ~np.isnan(layer[::8])
    lost = np.isnan(exact["ablation_value"].values) & (there & exact["keep"].values).any(1)
    assert lost.any()
    assert not lost.all()
    for ds in (series, exact, forward):
        entropy = ds["effects"].sel(effect="entropy_total").values
        np.testing.assert_array_equal(np.isnan(entropy), there & lost[:, None])
        assert (entropy[~there] == 0).all()
        np.testing.assert_allclose(ds["effects"], exact["effects"], atol=2e-5)
        for name in ("te", "de", "mediated"):
            np.testing.assert_array_equal(np.isnan(ds[name]), lost)
        assert np.isnan(ds["effect_abs_mean_routed"].sel(effect="loss_total"))[lost].all()
        assert (ds["te"].values[~lost] > 0).all()
        assert "entropy_total is no finite number" in ds.attrs["effects_undefined"]


@pytest.mark.parametrize("engine", ["series", "forward"])
def test_a_neuron_that_is_never_there_does_nothing(run, short, layer, engine):
    text = [Path(short).read_text()]
    names = ",".join(f"2.{expert}.0" for expert in range(6))
    every = run("entropy_neurons", names, text, keep=["all"], engine=engine)
    never = every["routed_tokens"].values == 0
    assert never.any()
    assert not never.all()
    alone = run("entropy_neurons", ",".join(every["neuron"].values[never]), text, keep=["all"],
                engine=engine)  # fmt: skip
    for ds in (every.isel(neuron=never), alone):
        assert (ds["effects"].fillna(0) == 0).all()
        assert (ds["te"] == 0).all()
        assert ds["ablation_value"].isnull().all()
        assert ds["effect_mean_routed"].isnull().all()


@pytest.mark.parametrize("engine", ["exact", "forward"])
def test_sets_whose_values_are_not_known_are_no_controls(run, short, engine):
    ds = run(
        "group_ablation", mean_from=short, random_sets=12, deviations="0", engine=engine,
        effects=["entropy_total", "confidence_total", "correct_total"],
    )  # fmt: skip
    size = sizes(ds)
    known = ~np.isnan(size).any(1)
    assert known.any()
    assert not known.all()
    np.testing.assert_allclose(ds["effect_abs_mean"], size, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(ds["p_random"], p_of(ds, size), rtol=1e-6)
    assert (~np.isnan(ds["ece"].values) == known).all()
    changed = np.abs(ds["mean_confidence"] - ds["unablated_mean_confidence"]).values.astype(float)
    np.testing.assert_allclose(ds["mean_confidence_p_random"], p_of(ds, changed), rtol=1e-6)


def test_recipes_about_every_token_refuse_experts(run):
    for recipe in ("families", "activations"):
        with pytest.raises(ConfregError, match="has experts, whose neurons are there at some"):
            run(recipe)
