"""Means by group of tokens, found while tokens are summed over, against those of a cube."""

import numpy as np
import pytest
from test_derive_calibration import plain

import confreg
from confreg.errors import ConfregError
from confreg.report import write

QUESTIONS = [
    {
        "prompt": " ".join(f"w{(5 * i + 7 * j) % 90 + 3}" for j in range(length)),
        "category": "abc"[i % 3],
        "level": i % 2,
        **({"target": f" w{7 + i} w3", "contrast": " w4"} if i != 4 else {}),
    }
    for i, length in enumerate((3, 12, 8, 9, 5, 13, 4, 7))
]
EFFECTS = [
    "loss_total", "loss_direct", "entropy_total", "top1_total", "target_loss_total",
    "temperature_share",
]  # fmt: skip
BY = ("effect_mean_by", "effect_abs_mean_by", "te_by", "de_by", "te_mediated_by", "mediated_by")


def run(checkpoint, out, recipe="entropy_neurons", **options):
    given = {"text": QUESTIONS, "columns": "category,level", "neurons": "2.3,2.4,2.9"}
    return confreg.run(
        recipe, model=str(checkpoint("llama")), out=out, progress=False, **given | options
    ).load()  # fmt: skip


@pytest.mark.parametrize(
    ("engine", "neurons", "keep", "by"),
    [
        ("auto", "2.3,2.4,2.9", None, "category"),
        ("auto", "2.3,2.4,2.9", "all", "level"),
        ("forward", "1.3,1.4", ["target"], "category"),
        ("auto", "2.3,2.4,2.9", "all", "position"),
    ],
)
def test_they_are_those_of_the_cube(checkpoint, tmp_path, engine, neurons, keep, by):
    options = {"engine": engine, "neurons": neurons, "keep": keep, "effects": EFFECTS, "by": by}
    cube = run(checkpoint, tmp_path / "c.zarr", unit_tokens=16, **options)
    reduced = run(checkpoint, tmp_path / "r.zarr", unit_tokens=16, reduce="token", **options)
    wanted = cube.confreg.mean(by=by)
    label, kept = cube[by].values, cube["keep"].values
    names = np.unique(label[kept])
    # Reduced, passes and products have other shapes, and effects of 1e-3 another last digit.
    for ds, rtol, atol in ((cube, 2e-5, 1e-6), (reduced, 1e-3, 1e-5)):
        assert ds["group"].values.tolist() == names.tolist()
        assert ds["group_size"].values.tolist() == [(kept & (label == n)).sum() for n in names]
        assert ds.attrs["by"] == by
        for name in BY:
            np.testing.assert_allclose(
                ds[name].transpose(*wanted[name].dims), wanted[name], rtol=rtol, atol=atol,
                err_msg=name,
            )  # fmt: skip
    # From the cube by hand, of one group.
    some = kept & (label == names[0])
    values = cube["effects"].sel(effect="entropy_total").values[:, some].astype(np.float64)
    found = reduced["effect_abs_mean_by"].sel(effect="entropy_total").isel(group=0)
    np.testing.assert_allclose(found, np.abs(values).mean(1), rtol=1e-4, atol=1e-6)
    assert np.abs(values).max() > 1e-3


def test_calibration_of_each_group(checkpoint, tmp_path):
    ds = run(checkpoint, tmp_path / "o.zarr", "calibration", by="category", ablation=8.0)
    kept = ds["keep"].values & np.isfinite(ds["correct"].values)
    for g, name in enumerate("abc"):
        some = kept & (ds["category"].values == name)
        before = [ds[n].values[some].astype(float) for n in ("confidence", "correct")]
        for number, value in plain(*before).items():
            np.testing.assert_allclose(float(ds[f"unablated_{number}_by"][g]), value, atol=1e-6)
        for i in range(ds.sizes["neuron"]):
            change = ds["effects"].isel(neuron=i, token=some)
            after = [
                b + change.sel(effect=f"{n}_total").values
                for b, n in zip(before, ("confidence", "correct"))
            ]
            for number, value in plain(*after).items():
                np.testing.assert_allclose(
                    float(ds[f"{number}_by"].isel(neuron=i, group=g)), value, atol=1e-5
                )
        assert int(ds["unablated_calibration_tokens_by"][g]) == some.sum()


def test_groups_by_the_frequency_of_the_next_token(checkpoint, words, tmp_path):
    options = {
        "text": words, "columns": None, "sequence_length": 16, "max_tokens": 160,
        "by": "frequency",
    }  # fmt: skip
    ds = run(checkpoint, tmp_path / "o.zarr", "token_frequency_neurons", **options)
    wanted = ds.confreg.mean(by="frequency")
    for name in ("effect_mean_by", "te_by", "mediated_by"):
        np.testing.assert_allclose(ds[name], wanted[name], rtol=2e-5, atol=1e-6)
    from confreg import tokens

    text = tokens.read(words)
    import zoo

    counted = tokens.counts.read(None, text, zoo.tiny("llama")[1], zoo.ROWS).values + 1.0
    following = ds["next_token_id"].values
    power = np.floor(np.log10(counted[following] / counted.sum()))
    known = following >= 0
    assert len(np.unique(power[known])) > 1
    # Rows that no token owns are counted neither here nor there.
    owned = counted[: zoo.VOCAB].sum() / counted.sum()
    assert owned > 0.9
    agree = ds["frequency"].values[known] == power[known]
    assert agree.mean() > 0.95
    assert set(ds["frequency"].values[~known]) == {1}


def test_the_page_shows_groups(checkpoint, tmp_path):
    ds = run(checkpoint, tmp_path / "o.zarr", by="category", reduce="token")
    write(ds, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "By category" in text
    assert "groups-loss_total" in text


@pytest.mark.parametrize(
    ("recipe", "options", "words"),
    [
        ("entropy_neurons", {"by": "colour"}, "tokens have no such label.*level"),
        ("entropy_neurons", {"by": "frequency"}, "needs token counts"),
        ("census", {"by": "category"}, "this one finds none"),
        ("entropy_neurons", {"columns": "loss"}, "something of that name already"),
        ("calibration", {"columns": "bin"}, "something of that name already"),
        ("entropy_neurons", {"columns": "group"}, "cannot be a label"),
    ],
)
def test_mistakes_are_sentences(checkpoint, tmp_path, recipe, options, words):
    rows = [dict(q, loss=1, bin=2, group=3) for q in QUESTIONS]
    with pytest.raises(ConfregError, match=words):
        run(checkpoint, tmp_path / "o.zarr", recipe, **{"text": rows, **options})
    assert not (tmp_path / "o.zarr").exists()
