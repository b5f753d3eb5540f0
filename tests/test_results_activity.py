"""Statistics of stored activations against computations from first principles."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import xarray as xr

import confreg
from confreg.errors import ConfregError
from confreg.results.families import in_words
from confreg.results.series import fuzzy_entropy

WORDS = [" the", " cat", "s", ",", " 12", "\n", " Dog", "ing", " runs", ".", " é", "A"]


def stored(activation: np.ndarray, length: int = 20, seed: int = 0) -> xr.Dataset:
    """A store's activations, (n, T), at tokens of sequences; the first three are not kept."""
    n, total = activation.shape
    draw = np.random.default_rng(seed)
    position = np.arange(total) % length
    return xr.Dataset(
        {"activation": (("neuron", "token"), activation.astype(np.float32))},
        coords={
            "neuron": ("neuron", np.array([f"2.{i}" for i in range(n)], dtype=object)),
            "layer": ("neuron", np.full(n, 2)),
            "index": ("neuron", np.arange(n)),
            "keep": ("token", position >= 3),
            "sequence": ("token", np.arange(total) // length),
            "position": ("token", position),
            "token_text": ("token", draw.choice(np.array(WORDS, dtype=object), total)),
        },
    )


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(12, 400))


# ---- redundancy


def prim(distance: np.ndarray) -> list[float]:
    """The edges of the minimum spanning tree, ascending."""
    n, joined, edges = len(distance), {0}, []
    while len(joined) < n:
        length, new = min((distance[i, j], j) for i in joined for j in range(n) if j not in joined)
        joined.add(new)
        edges.append(length)
    return sorted(edges)


def test_deaths_are_the_edges_of_the_minimum_spanning_tree(noise):
    values = noise.copy()
    values[5], values[7], values[9] = 3 * values[0] + 2, -values[1], 4.0
    ds = stored(values)
    found = confreg.redundancy(ds)
    with np.errstate(invalid="ignore"):
        r = np.corrcoef(ds["activation"].values[:, ds["keep"].values].astype(np.float64))
    distance = 1 - np.abs(np.nan_to_num(r))
    np.testing.assert_allclose(found["death"], prim(distance), atol=1e-6)
    # Duplicates and antipodes: two deaths at 0, which a sparse graph takes for missing edges.
    assert (found["death"].values[:2] < 1e-6).all()
    assert found["death"].values[2] > 0.5
    relation = dict(zip(found["neuron"].values, found["relation"].values))
    assert {k: v for k, v in relation.items() if v} == {
        "2.0": "duplicate", "2.5": "duplicate", "2.1": "antipode", "2.7": "antipode"
    }  # fmt: skip
    nearest = dict(zip(found["neuron"].values, found["nearest"].values))
    assert (nearest["2.0"], nearest["2.7"], nearest["2.9"]) == ("2.5", "2.1", "")
    np.fill_diagonal(distance, 2)
    np.testing.assert_allclose(found["nearest_distance"], np.minimum(distance.min(1), 1), atol=1e-6)
    groups = found["group"].values
    assert groups[0] == groups[5] != groups[1] == groups[7]
    assert set(np.delete(groups, [0, 1, 5, 7])) == {-1}
    deaths = found["death"].values
    assert found.attrs["mean_death"] == pytest.approx(deaths.mean())
    assert found.attrs["spread_less_mean_death"] == pytest.approx(
        (deaths.std() - deaths.mean()) / 2
    )
    assert found.attrs["merges_within"] == 2


# ---- series


def by_hand(values: np.ndarray, sequence: np.ndarray, position: np.ndarray, order: int):
    """One neuron: autocorrelation at lag 1, share between sequences, conditional entropy."""
    pairs, square, counts = [], [], {}
    mean, between = values.mean(), 0.0
    for s in np.unique(sequence):
        here = np.flatnonzero(sequence == s)
        level = values[here].mean()
        between += len(here) * (level - mean) ** 2
        for a, b in pairwise(here):
            if position[b] == position[a] + 1:
                pairs.append((values[a] - level) * (values[b] - level))
                square.append(((values[a] - level) ** 2, (values[b] - level) ** 2))
        for at in range(len(here) - order):
            piece = here[at : at + order + 1]
            if position[piece[-1]] == position[piece[0]] + order:
                word = tuple(values[piece] > 0)
                counts[word] = counts.get(word, 0) + 1
    size = np.sum(square, axis=0)
    total, entropy = sum(counts.values()), 0.0
    for word, count in counts.items():
        before = sum(c for w, c in counts.items() if w[:-1] == word[:-1])
        entropy -= count / total * math.log(count / before)
    return (
        sum(pairs) / math.sqrt(size[0] * size[1]),
        between / ((values - mean) ** 2).sum(),
        entropy,
    )


@pytest.mark.parametrize("order", [1, 2])
def test_series_are_what_their_definitions_say(noise, order):
    values = noise.copy()
    values[1] = np.repeat(np.random.default_rng(2).normal(size=20), 20) + 0.1 * values[1]
    values[2] = np.convolve(values[2], np.ones(5), "same")
    values[3] = np.tile([1.0, 1.0, -1.0], 134)[:400]
    values[4] = 2.0
    ds = stored(values)
    # Of a token within a sequence that is not kept, its neighbours are no pair.
    keep = ds["keep"].values.copy()
    keep[10::20] = False
    ds = ds.assign_coords(keep=("token", keep))
    found = confreg.series(ds, order=order, shuffles=30)
    kept = ds["activation"].values[:, keep].astype(np.float64)
    for number in (0, 1, 2, 3):
        r, share, entropy = by_hand(
            kept[number], ds["sequence"].values[keep], ds["position"].values[keep], order
        )
        assert float(found["autocorrelation"][number, 0]) == pytest.approx(r, abs=1e-9)
        assert float(found["between_share"][number]) == pytest.approx(share, abs=1e-9)
        assert float(found["on_entropy"][number]) == pytest.approx(entropy, abs=1e-9)
    assert np.isnan(found["autocorrelation"][4]).all()
    assert np.isnan(found["between_share"][4])
    # Noise is within the spread of its shuffles, and what repeats is far below it.
    z = (found["on_entropy"] - found["on_entropy_shuffled"]) / found["on_entropy_spread"]
    assert abs(float(z[0])) < 3.5
    assert float(z[3]) < -10
    assert float(found["between_share"][1]) > 0.9
    assert found.attrs["between_share_chance"] == pytest.approx(19 / (keep.sum() - 1))
    assert abs(float(found["between_share"][0]) - found.attrs["between_share_chance"]) < 0.1


def test_fuzzy_entropy_is_its_definition():
    draw = np.random.default_rng(3)
    values = draw.normal(size=40)
    x = (values - values.mean()) / values.std()

    def phi(m: int) -> float:
        total, pieces = 0.0, [x[i : i + m] - x[i : i + m].mean() for i in range(len(x) - 1)]
        for i, one in enumerate(pieces):
            for j, other in enumerate(pieces):
                if i != j:
                    total += math.exp(-(max(abs(one - other)) ** 3) / 0.2)
        return total / (len(pieces) * (len(pieces) - 1))

    assert fuzzy_entropy(values) == pytest.approx(math.log(phi(1)) - math.log(phi(2)))
    assert fuzzy_entropy(5 * values - 3) == pytest.approx(fuzzy_entropy(values))
    slow = np.sin(np.arange(40) / 8)
    assert fuzzy_entropy(slow) < fuzzy_entropy(values)
    assert math.isnan(fuzzy_entropy(np.ones(40)))
    ds = stored(np.tile(values, (3, 10)))
    found = confreg.series(ds, fuzzy=["2.1"])["fuzzy_entropy"].values
    pieces = ds["activation"].values[1].reshape(-1, 20)[:, 3:]
    assert found[1] == pytest.approx(np.mean([fuzzy_entropy(piece) for piece in pieces]), rel=1e-5)
    assert np.isnan(found[[0, 2]]).all()


# ---- families


def reduction(v: np.ndarray, y: np.ndarray) -> float:
    share = y.mean()
    return 1 - ((1 - share) * v[~y].var() + share * v[y].var()) / v.var()


def test_a_family_is_the_feature_that_explains_most(noise):
    values = noise.copy()
    ds = stored(values)
    texts = ds["token_text"].values
    values[2] = np.where(np.char.isdecimal(np.char.strip(texts.astype(str))), 3.0, -0.5)
    after = np.append("", texts[:-1]) == ","
    values[3] = after + 0.3 * values[3]
    position = ds["position"].values
    values[4] = np.where(position > 11, 1.0, -1.0)
    values[5] = 7.0
    ds["activation"] = ("neuron", "token"), values.astype(np.float32)
    found = confreg.families(ds, least=10, shuffles=30)
    keep = ds["keep"].values
    kept = ds["activation"].values[:, keep].astype(np.float64)
    features = found["feature"].values.tolist()
    has_digit = np.array([any(c.isdecimal() for c in t) for t in texts])[keep]
    of = {
        "has a digit": has_digit,
        "the token 'dog'": (texts == " Dog")[keep],
        "after has a line break": (np.append("", texts[:-1]) == "\n")[keep],
        "outside ASCII": (texts == " é")[keep],
    }
    for name, y in of.items():
        column = features.index(name)
        assert float(found["feature_share"][column]) == pytest.approx(y.mean())
        for number in (0, 1, 2, 3):
            expected = reduction(kept[number], y)
            assert float(found["reduction"][number, column]) == pytest.approx(expected, abs=1e-9)
    assert str(found["family"].values[2]) in ("digits", "has a digit", "the token '12'")
    assert float(found["family_reduction"][2]) == pytest.approx(1)
    assert float(found["family_mean"][2]) == pytest.approx(3.0)
    assert float(found["other_mean"][2]) == pytest.approx(-0.5)
    assert "after" in str(found["family"].values[3])
    assert "','" in str(found["family"].values[3])
    # Noise has no family, nor has what is constant.
    assert found["family"].values[[0, 1, 6, 7]].tolist().count("") >= 3
    assert found["family"].values[5] == ""
    # On at the last 8 of 17 positions: the position says all of it.
    information = found["position_information"].values
    share = 8 / 17
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert information[4] == pytest.approx(entropy)
    assert information[5] == pytest.approx(0)
    assert information[0] < found.attrs["position_chance"] < information[4]


# ---- what cannot be


@pytest.mark.parametrize("statistic", [confreg.redundancy, confreg.series, confreg.families])
def test_what_has_no_activations_is_a_sentence(noise, statistic):
    ds = stored(noise)
    with pytest.raises(ConfregError, match="keeps none: run it with --activations"):
        statistic(ds.drop_vars("activation"))
    bad = noise.copy()
    bad[0, 5] = np.nan
    with pytest.raises(ConfregError, match="no finite numbers"):
        statistic(stored(bad))
    with pytest.raises(ConfregError, match="0"):
        statistic(ds.assign_coords(keep=("token", np.zeros(ds.sizes["token"], bool))))


def test_other_mistakes_are_sentences(noise):
    ds = stored(noise)
    with pytest.raises(ConfregError, match="from 2 to"):
        confreg.redundancy(ds.isel(neuron=[0]))
    with pytest.raises(ConfregError, match="within is a distance"):
        confreg.redundancy(ds, within=1.0)
    with pytest.raises(ConfregError, match=r"no neuron '9\.9'"):
        confreg.series(ds, fuzzy=["9.9"])
    with pytest.raises(ConfregError, match="follow each other"):
        confreg.series(stored(noise, length=4))
    with pytest.raises(ConfregError, match="No feature"):
        confreg.families(ds, least=300)


def test_tables_and_pages_say_what_an_activation_goes_with(tmp_path, capsys):
    """Of a run whose words are of two kinds, and neurons of a tiny model that tell them apart."""
    import zoo

    from confreg.cli.main import main
    from confreg.models import Model
    from confreg.results import families

    text = [" ".join(f"w{2 + (i * 7 + j * j) % 60}" for i in range(60)) for j in range(30)]
    out = tmp_path / "run.zarr"
    ds = confreg.run(
        "entropy_neurons", model=Model.wrap(*zoo.tiny("llama"), name="tiny"), text=text,
        neurons="2:0-5", activations=True, sequence_length=32, max_tokens=1200, progress=False,
        out=out,
    )  # fmt: skip
    names = ds["neuron"].values.tolist()
    words = families.in_words(ds, "neuron", names)
    assert words
    main(["show", str(out)])
    shown = " ".join(capsys.readouterr().out.split())
    main(["report", str(out), "-o", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    for name, said in words.items():
        assert f"{name} {said}" in shown
    assert page.count("activation goes with") == len(words)
    # Without activations nothing is said.
    assert families.in_words(ds.drop_vars("activation"), "neuron", names) == {}
    assert families.in_words(ds, "set", names) == {}


@pytest.mark.parametrize(("kind", "keep"), [("gpt2", None), ("llama", ["all"])])
def test_the_recipe_says_what_a_store_of_activations_says(kind, keep, checkpoint, tmp_path):
    """Sums by token, in small units, against every activation; first tokens have none before."""
    text = [" ".join(f"w{2 + (i * 7 + j * j) % 60}" for i in range(60)) for j in range(30)]
    options = {
        "model": str(checkpoint(kind)), "text": text, "neurons": "1:0-3,2:0-5", "progress": False,
        "sequence_length": 32, "max_tokens": 1200, "unit_tokens": 96, "keep": keep, "bos": "text",
    }  # fmt: skip
    whole = confreg.run("activations", activations=True, out=tmp_path / "a.zarr", **options)
    stored = confreg.families(whole)
    ds = confreg.run("families", out=tmp_path / "f.zarr", **options).load()
    assert ds["feature"].values.tolist() == stored["feature"].values.tolist()
    np.testing.assert_allclose(ds["feature_share"], stored["feature_share"], rtol=1e-6)
    for name in ("reduction", "family_reduction", "family_mean", "position_information"):
        np.testing.assert_allclose(ds[name], stored[name], atol=2e-4, rtol=1e-3, err_msg=name)
    # Both floors are about what shuffled labels give.
    assert ds.attrs["family_chance"] == pytest.approx(stored.attrs["family_chance"], rel=0.5)
    both = (ds["family"].values != "") & (stored["family"].values != "")
    assert both.any()
    assert (ds["family"].values[both] == stored["family"].values[both]).all()
    names = ds["neuron"].values.tolist()
    words = in_words(ds, "neuron", names)
    assert words == {
        name: f"{family} ({share:.0%})"
        for name, family, share in zip(names, ds["family"].values, ds["family_reduction"].values)
        if family
    }
    named = ds["family_reduction"].values > ds.attrs["family_chance"]
    assert ((ds["family"].values != "") == named).all()


def test_a_recipe_without_features_is_a_sentence(checkpoint, words, tmp_path):
    with pytest.raises(ConfregError, match="No feature of the tokens"):
        confreg.run(
            "families", model=str(checkpoint("llama")), text=words, least=10_000,
            out=tmp_path / "f.zarr", progress=False, sequence_length=16, max_tokens=64,
        )  # fmt: skip
