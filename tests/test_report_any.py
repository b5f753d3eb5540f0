"""A page for any dataset: axes and variables that nobody has seen."""

import json
import re

import numpy as np
import pytest
import xarray as xr
from report_data import NASTY, OTHERS, synthetic
from test_report_page import Elements

from confreg import report
from confreg.report import columns, composing, maps, reading, sections
from confreg.report.placing import place
from confreg.results import vocabulary


def made(ds, **options):
    return {s.key: s for s in composing.compose(ds, sections.Options(**options))[0]}


def written(ds, tmp_path):
    return report.write(ds, tmp_path / "a.html").read_text("utf-8")


def explored(page, axis):
    source = re.search(rf'data-explore="explore-{axis}">(.*?)</script>', page).group(1)
    return json.loads(source)


@pytest.mark.parametrize("name", [*OTHERS, "entropy_neurons"])
def test_no_variable_is_nowhere(name, tmp_path):
    ds = OTHERS[name]() if name in OTHERS else synthetic()
    found = made(ds)
    shown = set().union(*(section.shows for section in found.values()))
    assert set(map(str, ds.data_vars)) <= shown
    left = set(found["rest"].shows) if "rest" in found else set()
    assert left == ({"names", "nothing"} if name == "strange" else set())
    page = written(ds, tmp_path)
    text = Elements(page).text
    every = text + " ".join(re.findall(r'<script type="application/json".*?</script>', page))
    for variable in map(str, ds.data_vars):
        symbol = vocabulary.word(variable).symbol
        assert symbol in every or sections_of(found, variable), variable


def sections_of(found, variable):
    """Sections that show a variable in drawings alone, as effects colour the text."""
    drawn = [section for section in found.values() if variable in section.shows]
    return any(section.figures or section.template == "details" for section in drawn)


@pytest.mark.parametrize("name", list(OTHERS))
def test_pages_are_closed_and_links_lead_somewhere(name, tmp_path):
    page = written(OTHERS[name](), tmp_path)
    assert NASTY not in page
    elements = Elements(page)
    ids = elements.attributes("id")
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in elements.attributes("href")} <= set(ids)
    assert "Scatter of all neurons" not in elements.text  # not worth a word where none are meant


def test_every_variable_along_a_subject_is_a_column(tmp_path):
    ds = OTHERS["latents"]()
    section = made(ds)["table"]
    table = section.data["table"]
    titles = [column.title for column in table.columns]
    assert titles == [
        "split", "mean |Δ loss| (nats)", "mean |Δ loss (norm frozen)| (nats)",
        "mean |Δ margin| (logits)", "mean Δ loss (nats)", "mean Δ loss (norm frozen) (nats)",
        "mean Δ margin (logits)", "decoder norm", "density", "dead", "explanation",
    ]  # fmt: skip
    assert len(table.rows) == sections.TABLE_ROWS < ds.sizes["latent"]
    strongest = ds["effect_abs_mean"].sel(effect="loss_total")
    order = ds["latent"].values[np.argsort(-strongest.values)][: sections.TABLE_ROWS]
    assert [row[0] for row in table.rows] == [str(label) for label in order]
    cells = table.rows[0][2]
    assert cells[1].value == pytest.approx(float(strongest.max()))
    assert cells[titles.index("explanation")].text == f"about {order[0]}"
    assert [column.sorted for column in table.columns].index(True) == 1
    assert "200 of 300 latents: the first by mean |Δ loss| (nats)." in section.lead
    data = explored(written(ds, tmp_path), "latent")
    offered = [column["label"] for column in data["columns"]]
    assert offered == [*titles[1:9], "dead", "split"]
    at = data["labels"].index("7")
    assert data["columns"][7]["values"][at] == pytest.approx(float(ds["density"][7]), rel=1e-4)


def test_a_scale_is_drawn_against_its_numbers():
    ds = OTHERS["steering"]()
    section = made(ds)["table"]
    figure = section.figures[0].figure
    assert [list(trace.x) for trace in figure.data] == [ds["alpha"].values.tolist()] * 6
    kept = ds["effects"].isel(token=ds["keep"].values)
    for trace, title in zip(figure.data, figure.layout.annotations, strict=True):
        name = "norm_scale" if "norm" in title.text else title.text.split("Δ ")[1][:4]
        found = kept.sel(effect=next(e for e in ds["effect"].values if e.startswith(name)))
        expected = (np.abs(found) if "|" in title.text else found).mean("token")
        np.testing.assert_allclose(trace.y, expected, rtol=1e-5)
    assert figure.layout.annotations[0].text == "mean Δ entropy (nats)"
    assert figure.layout.xaxis4.title.text == "alpha (norms): multiple of the direction"
    assert section.title == "By alpha"
    labels = [row[0] for row in section.data["table"].rows]
    assert labels == ["-4", "-2", "-1", "0", "1", "2", "4"]


def test_text_of_any_subject_is_coloured():
    ds = OTHERS["steering"]()
    found = made(ds, contexts=1)
    detail = found["detail"].data
    assert detail["shaded"] == ["Δ entropy", "Δ loss", "Δ norm scale"]
    assert [one.neuron for one, _ in detail["neurons"]] == ["-4", "-2", "-1", "0", "1", "2", "4"]
    one = detail["neurons"][-1][0]
    cube = ds["effects"].sel(alpha=4, effect="entropy_total").where(ds["keep"])
    context = one.contexts[0]
    token = int(np.nanargmax(np.abs(cube.values)))
    assert (context.sequence, context.position) == divmod(token, 30)
    assert one.limits[2] != one.limits[0]
    passages = found["text"].data
    assert passages["shaded"] == ["loss", "surprise"]
    assert passages["lows"] == ["0", "−"]
    words = passages["passages"][0][1]
    assert [word.text for word in words[:3]] == [
        str(text).replace("\n", "↵") for text in ds["token_text"].values[:3]
    ]


def test_two_subjects_are_a_heat_map_with_the_strongest_pairs():
    ds = OTHERS["partners"]()
    section = made(ds)["map-correlation"]
    heat = section.figures[0].figure.data[0]
    assert np.shape(heat.z) == (40, 167)  # three partners a cell
    assert heat.z[3, 5] == pytest.approx(0.97)  # partners 15 to 17
    assert heat.x[5] == "5.15 … 5.17"
    assert heat.colorbar.title.text == "correlation; 34 of 6,680 cells lie beyond"
    assert "largest size of 1 × 3" in section.figures[0].caption
    rows = section.data.rows
    assert [(row[0], row[2][0].text) for row in rows[:2]] == [("11.3", "5.17"), ("11.8", "5.400")]
    assert [row[2][1].value for row in rows[:2]] == pytest.approx([0.97, -0.91])
    size = np.sort(np.abs(ds["correlation"].values).ravel())[::-1][: maps.PAIRS]
    assert [abs(row[2][1].value) for row in rows] == pytest.approx(size.tolist())


def test_large_maps_are_read_in_spans(monkeypatch):
    ds = OTHERS["partners"](ours=530, theirs=460)
    whole = maps.grid(ds, "correlation")
    monkeypatch.setattr(reading, "SPAN", 7 * 460)
    parts = maps.grid(ds, "correlation")
    assert whole.cells.shape == (177, 230, 1)
    np.testing.assert_array_equal(whole.cells, parts.cells)
    np.testing.assert_array_equal(whole.pairs, parts.pairs)
    values = np.abs(ds["correlation"].values[:3, :2])
    assert abs(whole.cells[0, 0, 0]) == values.max()


def test_numbers_stand_in_where_nothing_is_reduced(monkeypatch):
    ds = OTHERS["partners"]()
    r = ds["correlation"].astype(float)
    for spans in (reading.SPAN, 1000):
        monkeypatch.setattr(reading, "SPAN", spans)
        found = {column.key: column for column in columns.measured(ds, "neuron")}
        np.testing.assert_allclose(found["mean correlation"].values, r.mean("partner"), rtol=1e-5)
        largest = np.abs(r)
        np.testing.assert_allclose(
            found["largest |correlation|"].values, largest.max("partner"), rtol=1e-6
        )
        best = ds["partner"].values[largest.argmax("partner").values]
        assert found["largest correlation at"].texts == best.tolist()


def test_images_are_no_text(tmp_path):
    ds = OTHERS["digits"]()
    found = made(ds)
    assert "detail" not in found
    assert "text" not in found
    section = found["map-effects"]
    figure = section.figures[0]
    assert list(figure.choices) == ["Δ cross entropy", "Δ predicted"]
    assert [trace.visible for trace in figure.figure.data] == [True, False]
    title = figure.figure.data[0].colorbar.title.text
    assert title.startswith("Δ cross entropy (nats); ")
    assert {row[0] for row in section.data.rows[:20]} == {"0.5"}
    assert all(int(row[2][0].text) % 10 == 3 for row in section.data.rows[:20])
    images = found["along-image"].data["table"]
    assert [column.title for column in images.columns] == ["digit", "cross entropy (nats)"]
    assert found["numbers"].data.rows[0][2][0].text == "0.970"


def test_nothing_but_scalars(tmp_path):
    text = Elements(written(OTHERS["scalars"](), tmp_path)).text
    for phrase in ("Calibration", "brier score 0.123", "2.50 nats", "calibrated", "In a word"):
        assert phrase in text


def test_places_follow_from_dims():
    ds = OTHERS["strange"]()
    views = {str(name): place(ds, str(name)) for name in ds.data_vars}
    assert views["three"].averaged == ("c",)
    assert views["pair_in_text"].averaged == ("token",)
    assert (views["logit"].view, views["logit"].layers) == ("text", "effect")
    assert (views["of_quantity"].view, views["of_quantity"].rows) == ("table", "effect")
    assert (views["unlabelled"].view, views["unlabelled"].rows) == ("table", "trial")
    assert (views["everything"].view, views["everything"].rows) == ("context", "a")
    section = made(ds)["map-pair_in_text"]
    assert section.lead.endswith("Mean over kept tokens.")
    mean = ds["pair_in_text"].isel(token=ds["keep"].values).mean("token")
    np.testing.assert_allclose(section.figures[0].figure.data[0].z, mean, rtol=1e-5)


def test_the_chance_level_of_rho_is_drawn():
    ds = synthetic()
    assert [line.y0 for line in report.figures.null_space(ds).layout.shapes] == [
        pytest.approx(np.sqrt(12 / 64))
    ]
    said = ds.assign(null_fraction_chance=0.41, null_fraction_chance_max=0.7)
    lines = report.figures.null_space(said).layout.shapes
    assert [line.y0 for line in lines] == [0.41, 0.7]


def test_a_section_needs_variables_with_their_dims(monkeypatch):
    monkeypatch.setattr(sections, "REGISTRY", [])

    @report.section(needs={"x": ("a", "b")})
    def own(ds, options):
        return report.Section("own", "Own")

    right = xr.Dataset({"x": (("b", "a"), np.eye(2))}, {"a": ["p", "q"], "b": ["r", "s"]})
    assert next(iter(made(right))) == "own"
    assert "map-x" not in made(right)
    assert "map-x" in made(right.rename(a="c"))


def test_statistics_of_the_dataset_are_read():
    from confreg.report import profiles

    ds = xr.Dataset(
        {
            "shift": ("neuron", [1.0, 2.0]),
            "shift_sd": ("neuron", [3.0, 4.0]),
            "shift_sigma": ("neuron", [0.5, -0.5]),
            "shift_p": ("neuron", [0.25, np.nan]),
        },
        {"neuron": ["1.1", "1.2"]},
    )
    assert profiles.shifts(ds).sigma.tolist() == [0.5, -0.5]
    assert profiles.shift_ps(ds)[0] == 0.25
