"""The figures on their own, as in a notebook."""

import numpy as np
import pytest
from report_data import synthetic

from confreg.report import figures
from confreg.report.wording import percent
from confreg.results import tables


def points(figure):
    return {
        name: (x, y) for name, x, y in zip(*(figure.data[0][k] for k in ("customdata", "x", "y")))
    }


@pytest.fixture
def ds():
    return synthetic()


@pytest.mark.parametrize(
    ("draw", "x", "y"),
    [
        (figures.weights, "w_out_norm", "logit_var"),
        (figures.null_space, "te", "null_fraction"),
    ],
)
def test_a_point_a_neuron(ds, draw, x, y):
    found = points(draw(ds))
    assert len(found) == 30
    for index in (0, 3, 29):
        assert found[f"11.{index}"] == pytest.approx((float(ds[x][index]), float(ds[y][index])))


def test_few_shares_far_below_are_marked_at_the_edge(ds):
    figure = figures.mediation(ds)
    low = float(ds["mediated"][0])
    assert low < -10
    index = list(figure.data[0].customdata).index("11.0")
    floor = figure.data[0].y[index]
    assert figures.FLOOR <= floor <= -0.25
    assert figure.data[0].marker.symbol[index] == "triangle-down-open"
    assert f"mediated: {percent(low)}<" in figure.data[0].text[index]
    bottom, top = figure.layout.yaxis.range
    assert bottom < floor
    assert float(ds["mediated"].max()) < top < 1.1


def test_shares_not_far_below_are_drawn_where_they_are(ds):
    ds["mediated"][0] = -0.2
    figure = figures.mediation(ds)
    assert points(figure)["11.0"][1] == pytest.approx(-0.2)
    assert set(figure.data[0].marker.symbol) == {"circle"}
    assert figure.layout.yaxis.range[0] < -0.2


def test_logarithms_get_positive_numbers(ds):
    ds["te"][5], ds["logit_var"][6], ds["w_out_norm"][7] = 0, 0, np.nan
    assert "11.5" not in points(figures.mediation(ds))
    assert "11.6" not in points(figures.weights(ds))
    assert "11.7" not in points(figures.weights(ds))
    assert len(points(figures.weights(ds))) == 28


def test_colour_is_the_layer_where_there_are_several(ds):
    share = float(ds["mediated"].max())
    assert share <= figures.weights(ds).data[0].marker.cmax <= share + 0.1
    several = synthetic(layers=(2, 5))
    colours = figures.weights(several).data[0].marker.color
    assert set(colours) == {2, 5}


def test_too_many_points_keep_the_strongest(ds, monkeypatch):
    monkeypatch.setattr(figures, "MAX_POINTS", 10)
    found = points(figures.weights(ds))
    assert len(found) == 10
    assert set(tables.strongest(tables.table(ds), 3)[:2]) <= set(found)


def test_strong_neurons_are_named(ds):
    names = {text.strip() for text in figures.mediation(ds).data[1].text}
    assert names & {"11.3", "11.7"}
    assert len(names) <= figures.NAMED


def test_labels_cover_few_points_and_not_each_other():
    across = np.array([0.30, 0.36, 0.50, 0.58, 0.42, 1.0])
    up = np.array([0.5, 0.5, 0.2, 0.2, 0.2, 0.8])
    # 2 has a point on either side, and its label leaves no room for that of 3; at the right edge
    # a label lies inside.
    found = figures.beside(["29.57"] * 6, across, up, range(6), most=9)
    assert found == {0: "left", 1: "right", 2: "right", 4: "left", 5: "left"}
    assert list(figures.beside(["29.57"] * 6, across, up, [5, 2, 1, 0], most=2)) == [5, 2]
    crowd = np.append(0.5, np.linspace(0.4, 0.6, 40))
    assert figures.beside(["29.57"] * 41, crowd, np.full(41, 0.5), [0], most=1) == {}


def test_spectrum_shades_the_null_space(ds):
    figure = figures.spectrum(ds)
    assert list(figure.data[0].y) == pytest.approx(ds["singular_value"].values.tolist())
    assert (figure.layout.shapes[0].x0, figure.layout.shapes[0].x1) == (52.5, 64.5)
    del ds.attrs["null_dims"]
    assert not figures.spectrum(ds).layout.shapes


def test_jobs_draw_what_there_is(ds):
    figure = figures.jobs(ds.assign(job_seconds=("job", [1.0, 2.0])))
    assert [trace.name for trace in figure.data] == ["server time"]


def test_ranking_falls_back(ds):
    frame = tables.table(ds)
    assert tables.rank_by(frame) == "te_mediated"
    chosen = tables.strongest(frame, 12)
    assert len(chosen) == len(set(chosen)) == 12
    assert set(tables.ranked(frame, "te")[:3]) <= set(chosen)
    assert tables.rank_by(tables.table(ds.drop_vars(["de", "te_mediated"]))) == "te"
    weights = tables.table(ds[["logit_var", "w_out_norm"]])
    assert tables.rank_by(weights) == "w_out_norm"
    assert tables.strongest(weights, 2) == tables.ranked(weights, "w_out_norm")[:2]
    nothing = tables.table(ds[["effects"]])
    assert tables.rank_by(nothing) is None
    assert tables.strongest(nothing, 3) == []


def test_mediated_nats_are_worked_out(ds):
    less = tables.table(ds.drop_vars("te_mediated"))
    assert less["te_mediated"].to_numpy() == pytest.approx(ds["te_mediated"].values)
    ds["te_mediated"][3] = np.nan
    assert "11.3" not in tables.ranked(tables.table(ds), "te_mediated")


@pytest.mark.parametrize(
    ("low", "high"), [(0.0021, 0.0034), (11.0, 12.4), (0.3, 0.3), (7.0, 19.0), (1e-4, 3.0)]
)
def test_every_logarithmic_axis_has_ticks(low, high):
    axis = figures._log(np.array([low, high]))
    inside = [tick for tick in axis["tickvals"] if low * 0.9 <= tick <= high * 1.1]
    assert 1 < len(inside) < 10 or low == high
    assert len(set(axis["ticktext"])) == len(axis["ticktext"])
