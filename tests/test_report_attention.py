"""The page about ablated heads: scores, sets against controls, and the neurons that move."""

from __future__ import annotations

import numpy as np
import pytest

import confreg
from confreg import report
from confreg.report import attention, composing, figures, sections
from confreg.report.wording import number, signed


@pytest.fixture(scope="module")
def ds(checkpoint, words, tmp_path_factory):
    out = tmp_path_factory.mktemp("heads") / "o.zarr"
    return confreg.run(
        "bos_ablation", model=str(checkpoint("llama")), text=words, out=out, heads="top:2",
        neurons="2:0-39", length=8, score_length=6, score_sequences=4, random_sets=4,
        max_tokens=34, activations=True, progress=False,
    ).load()  # fmt: skip


def parts(ds):
    made, _ = composing.compose(ds, sections.Options())
    return {section.key: section for section in made}


def test_every_part_is_there(ds, tmp_path):
    found = parts(ds)
    assert {"prefix", "sets", "watched", "detail"} <= set(found)
    assert not {"repeats", "along"} & set(found)  # of ablated neurons
    assert "3 to 4 random sets of as many heads of the same layers" in found["sets"].lead
    assert found["sets"].title == "Sets of heads"
    page = report.write(ds, tmp_path / "page.html").read_text()
    assert "attention heads (top:2) attend to the first token only" in page
    assert "sets of heads are ablated; watched are 40 of the 48 neurons of layer 2" in page
    assert "Δ norm scale" in page


def test_chosen_heads_stand_out_among_all(ds):
    other, chosen = attention.scores(ds).data
    assert len(other.x) + len(chosen.x) == ds["prefix_score"].size
    for layer, score, label in zip(chosen.x, chosen.y, chosen.text):
        at = tuple(map(int, label.split(".")))
        assert layer == at[0]
        assert score == ds["prefix_score"].values[at]
    assert min(chosen.y) >= max(other.y)
    assert set(chosen.text) == {str(name) for name in ds["set"].values[[0, 4]]}


def test_the_effects_of_each_set_are_in_its_own_column(ds):
    random, chosen = figures.sets(ds, "entropy_total").data
    value = ds["effect_mean"].sel(effect="entropy_total")
    np.testing.assert_array_equal(chosen.x, [0, 1, 2])
    np.testing.assert_allclose(chosen.y, value[ds["set_kind"].values == "chosen"])
    places = ds["set_control"].values[ds["set_kind"].values == "random"]
    np.testing.assert_array_equal(np.rint(random.x), places)


def test_the_table_is_the_dataset(ds):
    table = parts(ds)["watched"].data
    columns, rows = table.columns, table.rows
    titles = [column.title for column in columns]
    joint, controls = attention.together(ds)
    assert ds["set_size"].values[joint] == 2
    assert len(rows) == attention.WATCHED < ds.sizes["neuron"]
    change = ds["activation_change_mean"]
    sigma = ds["activation"].std("token")
    least = min(abs(change.isel(set=joint).sel(neuron=r[0]) / sigma.sel(neuron=r[0])) for r in rows)
    left = [n for n in ds["neuron"].values if n not in {r[0] for r in rows}]
    assert (abs(change.isel(set=joint) / sigma).sel(neuron=left) <= float(least) + 1e-6).all()
    for neuron, _, cells in rows[:5]:
        told = dict(zip(titles, (cell.text for cell in cells)))
        mine = change.sel(neuron=neuron)
        assert told["change"] == signed(float(mine[joint]))
        assert told["random: lowest"] == signed(float(mine[controls].min()))
        assert told["p"] == number(float(ds["activation_p_random"].sel(neuron=neuron)[joint]))
        active = ds["activation"].sel(neuron=neuron)
        first = float(active[ds["compared"] & (ds["occurrence"] == 0)].mean())
        repeat = float(active[ds["keep"]].mean())
        assert told["first"] == number(first)
        share = dict(zip(titles, (cell.value for cell in cells)))["taken back"]
        assert share == pytest.approx(-float(mine[joint]) / (repeat - first), rel=1e-4)


def test_pages_of_less(ds, tmp_path):
    bare = ds.drop_vars(["activation", "activation_change", "effects"])
    titles = [column.title for column in parts(bare)["watched"].data.columns]
    assert "first" not in titles
    remote = ds.drop_dims(["model_layer", "head"])
    assert "prefix" not in parts(remote)
    alone = ds.isel(set=ds["set_kind"].values == "chosen")
    for number_, less in enumerate((bare, remote, alone)):
        assert report.write(less, tmp_path / f"{number_}.html").is_file()


def test_no_variable_is_nowhere(ds):
    found = parts(ds)
    shown = set().union(*(section.shows for section in found.values()))
    assert set(map(str, ds.data_vars)) <= shown
    assert "rest" not in found


def test_what_is_taken_back_is_read_where_the_dataset_has_it(ds):
    sets, neurons = ds.sizes["set"], ds.sizes["neuron"]
    said = ds.assign(taken_back=(("set", "neuron"), np.full((sets, neurons), 0.25)))
    table = parts(said)["watched"].data
    at = [column.title for column in table.columns].index("taken back")
    assert {cells[at].value for _, _, cells in table.rows} == {0.25}
