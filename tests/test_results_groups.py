"""Means and differences by group, against numpy and every permutation there is."""

from itertools import combinations

import numpy as np
import pytest
import xarray as xr

import confreg.results.accessor  # noqa: F401  registers ds.confreg
from confreg.errors import ConfregError

NAMES = ["loss_total", "loss_direct"]


def dataset(lengths=(3, 2, 4, 3, 2, 5, 3), seed=0):
    draw = np.random.default_rng(seed)
    document = np.repeat(np.arange(len(lengths)), lengths)
    count = len(document)
    values = draw.normal(size=(70, count, 2)).astype(np.float32)
    values[:, document % 2 == 0] += 0.8
    values[3, 5, 0] = np.nan
    category = np.array(["odd" if each % 2 else "even" for each in document], dtype=object)
    return xr.Dataset(
        {"effects": (("neuron", "token", "effect"), values)},
        coords={
            "neuron": [f"0.{i}" for i in range(70)],
            "effect": NAMES,
            "document": ("token", document),
            "category": ("token", category),
            "keep": ("token", draw.random(count) < 0.8),
        },
        attrs={"mediated_total": "loss_total", "mediated_direct": "loss_direct"},
    )


def test_means_by_group():
    ds = dataset()
    found = ds.confreg.mean(by="category")
    keep, values = ds["keep"].values, ds["effects"].values.astype(np.float64)
    for column, name in enumerate(["even", "odd"]):
        some = values[:, keep & (ds["category"].values == name)]
        assert found["group_size"].values[column] == some.shape[1]
        here = found.sel(group=name)
        np.testing.assert_allclose(here["effect_mean_by"], np.nanmean(some, 1), rtol=1e-6)
        absolute = np.nanmean(np.abs(some), 1)
        np.testing.assert_allclose(here["effect_abs_mean_by"], absolute, rtol=1e-6)
        np.testing.assert_allclose(here["te_by"], absolute[:, 0], rtol=1e-6)
        share = 1 - absolute[:, 1] / absolute[:, 0]
        np.testing.assert_allclose(here["mediated_by"], share, rtol=1e-6)


def test_a_temperature_share_is_of_means_in_each_group():
    ds = dataset()
    whole = np.abs(ds["effects"].values[..., 0].astype(float))
    left = whole * np.random.default_rng(4).random(whole.shape)
    ds = ds.drop_vars("effect").assign(
        effects=(("neuron", "token", "effect"), np.stack([whole, left, 1 - left / whole], -1))
    )
    names = ["divergence_total", "divergence_tempered_total", "temperature_share"]
    ds = ds.assign_coords(effect=names)
    by_group = ds.confreg.mean(by="category").sel(effect="temperature_share")
    keep, shares = ds["keep"].values, []
    for group in ("even", "odd"):
        some = keep & (ds["category"].values == group)
        shares.append(1 - np.nansum(left[:, some], 1) / np.nansum(whole[:, some], 1))
        for name in ("effect_mean_by", "effect_abs_mean_by"):
            np.testing.assert_allclose(by_group[name].sel(group=group), shares[-1], rtol=1e-6)
    compared = ds.confreg.compare_groups("even", "odd", draws=50).sel(effect="temperature_share")
    np.testing.assert_allclose(compared["difference"], shares[0] - shares[1], rtol=1e-6)
    # Of what has no mean that is known here there is none.
    unknown = ds.assign_attrs(effects_reduced="divergence_total")
    assert np.isnan(unknown.confreg.mean(by="category")["effect_mean_by"][:, 0]).all()
    assert unknown.confreg.compare_groups("even", "odd", draws=9)["q"][:, 0].isnull().all()


def test_draws_that_leave_a_group_nothing_are_not_counted():
    """Of two documents that say anything, each draw that tells them apart finds as much."""
    values = np.array([3.0, np.nan, np.nan, -4.0, np.nan, np.nan])
    ds = xr.Dataset(
        {"effects": (("neuron", "token", "effect"), values[None, :, None])},
        coords={
            "document": ("token", np.arange(6)),
            "category": ("token", [0, 0, 0, 1, 1, 1]),
            "keep": ("token", np.ones(6, dtype=bool)),
        },
    )
    assert float(ds.confreg.compare_groups(0, 1, draws=50)["p"][0, 0]) == 1


def test_p_is_that_of_all_permutations_of_documents():
    ds = dataset().isel(neuron=slice(0, 6))
    found = ds.confreg.compare_groups("even", "odd", draws=4000)
    keep, values = ds["keep"].values, ds["effects"].values.astype(np.float64)
    document = ds["document"].values

    def difference(first):
        one = keep & np.isin(document, first)
        return np.nanmean(values[:, one], 1) - np.nanmean(values[:, keep & ~one], 1)

    seen = difference([0, 2, 4, 6])
    every = np.stack([difference(some) for some in combinations(range(7), 4)])
    exact = (np.abs(every) >= np.abs(seen) - 1e-9).mean(0)
    np.testing.assert_allclose(found["difference"], seen, rtol=1e-6)
    np.testing.assert_allclose(found["p"], exact, atol=0.035)
    assert found["documents"].values.tolist() == [4, 3]
    assert (found["low"] <= found["difference"]).all()
    assert (found["difference"] <= found["high"]).all()


def test_the_interval_is_of_documents_and_not_of_tokens():
    """Tokens of a document that all say the same are one observation."""
    many = 50
    document = np.repeat(np.arange(8), many)
    values = np.repeat(np.random.default_rng(1).normal(size=8), many)
    ds = xr.Dataset(
        {"effects": (("neuron", "token", "effect"), values[None, :, None])},
        coords={
            "document": ("token", document),
            "category": ("token", document % 2),
            "keep": ("token", np.ones(len(document), dtype=bool)),
        },
    )
    wide = ds.confreg.compare_groups(0, 1, draws=3000)
    single = ds.isel(token=slice(None, None, many)).confreg.compare_groups(0, 1, draws=3000)
    for name in ("difference", "p", "low", "high"):
        np.testing.assert_allclose(wide[name], single[name], rtol=1e-9)


def test_chance_is_seldom_significant():
    draw, found = np.random.default_rng(2), []
    document = np.repeat(np.arange(20), 3)
    ds = xr.Dataset(
        {"effects": (("neuron", "token", "effect"),
                     np.repeat(draw.normal(size=(400, 20, 1)), 3, axis=1))},
        coords={"document": ("token", document), "category": ("token", document < 10),
                "keep": ("token", np.ones(60, dtype=bool))},
    )  # fmt: skip
    found = ds.confreg.compare_groups(True, False, draws=999)["p"].values
    assert 0.02 < (found <= 0.05).mean() < 0.085


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: c.mean(by="absent"), "no label 'absent'"),
        (lambda c: c.mean(by="neuron"), "no label 'neuron'"),
        (lambda c: c.compare_groups("even", "none"), "there are 'even', 'odd'"),
        (lambda c: c.compare_groups(0, 1, by="document"), "needs two of each"),
        (lambda c: c.compare_groups("even", "odd", draws=0), "at least 1"),
    ],
)
def test_mistakes_are_sentences(call, words):
    with pytest.raises(ConfregError, match=words):
        call(dataset().confreg)


def test_a_label_that_changes_within_documents_is_refused():
    ds = dataset()
    mixed = np.arange(ds.sizes["token"]) % 2
    with pytest.raises(ConfregError, match="not the same throughout a document"):
        ds.assign_coords(half=("token", mixed)).confreg.compare_groups(0, 1, by="half")
    with pytest.raises(ConfregError, match="run without --reduce token"):
        ds.drop_vars("effects").confreg.mean(by="category")
