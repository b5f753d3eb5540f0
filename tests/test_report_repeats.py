"""The page about text that comes again, and its figures."""

import numpy as np
import pytest

import confreg
from confreg import report
from confreg.report import composing, profiles, sections


@pytest.fixture(scope="module")
def ds(checkpoint, words, tmp_path_factory):
    return confreg.run(
        "induction", model=str(checkpoint("llama")), text=words, neurons="2.3,2.9,2.30",
        out=tmp_path_factory.mktemp("runs") / "o.zarr", length=6, sequence_length=16,
        max_tokens=52, random_sets=3, progress=False,
    ).load()  # fmt: skip


def by_hand(ds, values, occurrence):
    """Values of each aligned position, over sequences."""
    found = {}
    for token in range(ds.sizes["token"]):
        if ds["compared"].values[token] and ds["occurrence"].values[token] == occurrence:
            found.setdefault(int(ds["aligned"].values[token]), []).append(values[token])
    return dict(sorted(found.items()))


@pytest.mark.parametrize("points", [50, 3])
def test_standard_deviations_are_over_tokens(ds, monkeypatch, points):
    monkeypatch.setattr(profiles, "POINTS", points)
    width = 1 if points == 50 else 2
    for number, (_, _, where) in enumerate(profiles.occurrences(ds)):
        found = profiles.profile(ds, ds["entropy"].values, where)
        binned = {}
        for position, values in by_hand(ds, ds["entropy"].values, number).items():
            binned.setdefault(position // width, []).extend(values)
        assert {len(v) for v in binned.values()} <= {4, 4 * width}
        np.testing.assert_allclose(found.mean, [np.mean(v) for v in binned.values()], rtol=1e-5)
        np.testing.assert_allclose(found.sd, [np.std(v) for v in binned.values()], rtol=1e-4)
        assert (found.sd > 0).all()
        middle = [b * width + (width - 1) / 2 for b in binned]
        np.testing.assert_allclose(found.at, middle)


def test_the_change_of_an_activation_is_of_pairs(ds):
    mean, sd, relative = profiles.shifts(ds)
    for row in range(ds.sizes["neuron"]):
        values = ds["activation"].values[row].astype(float)
        first, second = (by_hand(ds, values, number) for number in (0, 1))
        shared = sorted(first.keys() & second.keys())
        assert shared == [2, 3, 4]  # the first positions of a sequence have no pair
        before, after = (np.concatenate([o[at] for at in shared]) for o in (first, second))
        assert mean[row] == pytest.approx((after - before).mean())
        assert sd[row] == pytest.approx((after - before).std())
        spread = np.concatenate([before, after]).std()
        assert relative[row] == pytest.approx((after - before).mean() / spread)


def test_a_set_is_drawn_against_its_own_controls(ds):
    drawn = profiles.ways(ds)
    labels = ds["set"].values
    assert [(name, labels[own]) for name, own, _ in drawn] == [
        ("plain", "joint-0"), ("clipped", "joint-0:clipped"),
    ]  # fmt: skip
    assert [labels[c].tolist() for *_, c in drawn] == [
        [f"random-1.{i}" for i in range(3)], [f"random-1.{i}:clipped" for i in range(3)],
    ]  # fmt: skip
    figure = profiles.along(ds, "loss_total")
    cube = ds["effects"].sel(effect="loss_total").values
    means = [[np.mean(v) for v in by_hand(ds, cube[row], 1).values()] for row in drawn[1][2]]
    band, median = [t for t in figure.data if t.xaxis == "x2"][:2]
    high, low = np.array_split(np.asarray(band.y), 2)
    np.testing.assert_allclose(high, np.max(means, axis=0), rtol=1e-5)
    np.testing.assert_allclose(low[::-1], np.min(means, axis=0), rtol=1e-5)
    np.testing.assert_allclose(median.y, np.median(means, axis=0), rtol=1e-5)


def test_the_page(ds, tmp_path):
    page = report.write(ds, tmp_path / "o.html").read_text("utf-8")
    for phrase in (
        "Where the text comes again",
        "Ablated where the text comes again",
        "Each of 4 sequences has a text twice",
        "activation replaced by its mean over 12 compared tokens of first occurrences",
        f"Against {ds.sizes['neuron'] - 3} random neurons of the layer",
        "Each chosen set against 3 random sets",
        "3 together,\\u003cbr\\u003eclipped",
        "tokens of second occurrences",
    ):
        assert phrase in page
    assert page.index('id="repeats"') < page.index('id="sets"') < page.index('id="detail"')


def test_kinds_of_continuation_are_drawn_apart(ds):
    mixed = ds.assign_coords(matched=ds["matched"] & (ds["sequence"] > 1))
    names = [name for name, *_ in profiles.occurrences(mixed)]
    assert names == ["first", "second, goes on alike", "second, goes on otherwise"]
    *_, alike, otherwise = (where for *_, where in profiles.occurrences(mixed))
    np.testing.assert_array_equal(alike | otherwise, ds["keep"])
    assert not (alike & otherwise).any()
    assert len(profiles.along(mixed, "entropy_total").layout.annotations) == 4


def test_no_variable_is_nowhere(ds):
    made, _ = composing.compose(ds, sections.Options())
    assert set(map(str, ds.data_vars)) <= set().union(*(section.shows for section in made))
    assert "rest" not in [section.key for section in made]


def test_p_of_a_shift_counts_random_neurons(ds):
    sigma, chosen = np.abs(profiles.shifts(ds).sigma), profiles.chosen_neurons(ds)
    p = profiles.shift_ps(ds)
    for row in np.flatnonzero(chosen):
        expected = (1 + (sigma[~chosen] >= sigma[row]).sum()) / (1 + (~chosen).sum())
        assert p[row] == pytest.approx(expected)
