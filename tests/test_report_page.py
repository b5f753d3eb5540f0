"""The page as text: what it says, what it leaves out, and that it needs nothing else."""

import html.parser
import json
import re

import numpy as np
import pytest
import xarray as xr
from report_data import NASTY, synthetic

from confreg import report
from confreg.errors import ConfregError
from confreg.report import composing, contexts, sections
from confreg.report.wording import effect_label, number, percent, signed
from confreg.results import tables


@pytest.fixture(scope="module")
def ds():
    return synthetic()


@pytest.fixture(scope="module")
def page(ds, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "deep" / "page.html"
    assert report.write(ds, path) == path
    return path.read_text(encoding="utf-8")


class Elements(html.parser.HTMLParser):
    """All start tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.words, self._quiet = [], [], False
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._quiet = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._quiet = False

    def handle_data(self, data):
        if not self._quiet:
            self.words.append(data)

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.tags if name in attrs]


def without_plotly(page):
    scripts = re.findall(r"<script>.*?</script>", page, flags=re.S)
    assert sum(len(script) > 1_000_000 for script in scripts) == 1
    return page.replace(max(scripts, key=len), "")


def test_page_says_what_was_run(page):
    text = Elements(page).text
    for phrase in (
        'Entropy neurons in smollm2-135m<img src="x">',
        "revision 0123456789ab, float32",
        "30 neurons of layer 11 (the model has layers 0 to 11)",
        "help topics of Python 3.11 (pydoc_data.topics): 240 tokens in 6 sequences of at most 40; "
        "216 kept in means",
        "activation replaced by its mean over all tokens",
        "exact, tolerance 1×10⁻⁴ nats; largest error measured 3.2×10⁻⁶ nats on 512 neuron × token",
        "profile memory, seed 0",
        "confreg 0.1.0, torch 2.13.0",
        "confreg run entropy_neurons --model smollm2-135m --out runs/demo.zarr",
    ):
        assert phrase in text


def test_page_says_why_these_neurons_and_what_bars_are(ds, page):
    text = Elements(page).text
    assert (
        "The 8 neurons with the largest TE − DE, then the 4 others with the largest TE. For each,"
    ) in text
    assert "Bars of TE are relative to the largest, of mediated to 100 %." in text
    few = composing.compose(ds.isel(neuron=slice(3)), sections.Options())[0]
    lead = next(section.lead for section in few if section.key == "detail")
    assert lead.startswith("All 3 neurons, those with the largest TE − DE first. For")
    named = composing.compose(ds, sections.Options(neurons=["11.2"]))[0]
    lead = next(section.lead for section in named if section.key == "detail")
    assert lead.startswith("For each, the tokens")


def test_te_and_de_stand_once_and_plots_begin_with_what_is_no_line(ds):
    means = {"effect_abs_mean": (("neuron", "effect"), np.arange(120.0).reshape(30, 4))}
    twice = ds.assign(means).assign_attrs(
        mediated_total="loss_total", mediated_direct="loss_direct"
    )
    twice["de"] = 0.9 * twice["te"]
    table = next(s for s in composing.compose(twice, sections.Options())[0] if s.key == "table")
    titles = [column.title for column in table.data["table"].columns]
    assert not [title for title in titles if "mean |Δ loss" in title]
    assert "mean |Δ entropy| (nats)" in titles
    columns = table.data["explore"]["columns"]
    chosen = [columns[table.data["explore"][axis]] for axis in ("x", "y")]
    assert [(column["label"], column["percent"]) for column in chosen] == [
        ("TE (nats)", False),
        ("mediated", True),
    ]
    assert "layer" not in [column["label"] for column in columns]  # one layer alone


def test_effects_are_listed_with_their_errors(ds):
    errors = ds.assign(effect_error=("effect", [1e-6, 2e-6, 3e-6, np.nan])).assign_coords(
        effect_long_name=("effect", np.array(["a", "b", "c", "d"], object)),
        effect_units=("effect", np.array(["nats"] * 4, object)),
    )
    errors["effect_error"].attrs["long_name"] = "largest error of a sample"
    found = [s for s in composing.compose(errors, sections.Options())[0] if "ffects" in s.title]
    assert [section.title for section in found] == ["Effects, and how exactly they were computed"]
    table = found[0].data
    assert [column.title for column in table.columns] == ["meaning", "largest error (nats)"]
    assert [row[0] for row in table.rows][:2] == ["Δ loss", "Δ loss (norm frozen)"]
    assert [cell.text for cell in table.rows[1][2]] == ["B", "2.00×10⁻⁶"]


def test_page_needs_nothing_else(page):
    elements = Elements(page)
    assert all(target.startswith("#") for target in elements.attributes("href"))
    assert not elements.attributes("src")
    assert not re.search(r"@import|url\(", without_plotly(page))
    policy = next(a["content"] for _, a in elements.tags if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_links_lead_somewhere(page):
    elements = Elements(page)
    targets = {target[1:] for target in elements.attributes("href")}
    assert len(targets) > 12
    assert targets <= set(elements.attributes("id"))


def test_text_is_escaped(page):
    assert NASTY not in page
    elements = Elements(page)
    assert "img" not in [tag for tag, _ in elements.tags]
    assert "<b>" in elements.text
    dataset = synthetic(width=3)
    dataset["neuron"] = np.array([NASTY, "11.1", "11.2"], object)
    with_nasty_name = composing.compose(dataset, sections.Options())[0][0].figures[0].figure
    from confreg.report.page import _figure_json

    encoded = _figure_json(with_nasty_name)
    assert "<" not in encoded
    assert NASTY in json.dumps(json.loads(encoded), ensure_ascii=False).replace('\\"', '"')


def test_strongest_neurons_come_first(ds, page):
    details = [i for i in Elements(page).attributes("id") if i.startswith("n-")]
    assert set(details[:2]) == {"n-11.3", "n-11.7"}
    assert len(details) == 12
    rows = [i for i in Elements(page).attributes("id") if i.startswith("r-")]
    assert len(rows) == 30
    assert set(rows[:2]) == {"r-11.3", "r-11.7"}


def test_named_neurons(ds, tmp_path):
    page = report.write(ds, tmp_path / "a.html", neurons=["11.29"], contexts=2).read_text("utf-8")
    elements = Elements(page)
    assert [i for i in elements.attributes("id") if i.startswith("n-")] == ["n-11.29"]
    assert page.count('<figure class="context">') == 2


def test_unknown_neuron(ds, tmp_path):
    with pytest.raises(ConfregError, match=r"no neuron '3\.1'"):
        report.write(ds, tmp_path / "a.html", neurons=["3.1"])


def test_path_that_cannot_be_written(ds, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfregError, match="cannot be written"):
        report.write(ds, tmp_path / "file" / "page.html")


def test_no_dataset_of_confreg(tmp_path):
    with pytest.raises(ConfregError, match="no result of confreg"):
        report.write(xr.Dataset({"x": ("y", [1.0])}), tmp_path / "a.html")


@pytest.mark.parametrize(
    ("absent", "gone", "sentence"),
    [
        (["effects", "activation", "effect"], "In context", "--reduce token"),
        (["singular_value"], "What the unembedding does not read", "no singular_value"),
        (["te", "mediated", "te_mediated", "de"], "How much ablating", None),
        (["te", "mediated", "logit_var"], "Each point is one of", "nor te and mediated"),
        (["null_fraction"], "random direction", None),
        (["w_out_norm"], "A large output weight that", None),
        (["activation"], "Underlined", None),
        (["loss", "rank", "entropy"], "mean loss", None),
        (["loss", "rank"], "unablated rank", None),
    ],
)
def test_absent_variables_leave_their_section_out(ds, page, tmp_path, absent, gone, sentence):
    text = Elements(page).text + "".join(re.findall(r'class="quantities">.*', page))
    assert gone in text
    less = report.write(ds.drop_vars(absent), tmp_path / "a.html").read_text("utf-8")
    text = Elements(less).text + "".join(re.findall(r'class="quantities">.*', less))
    assert gone not in text
    assert "Strongest neurons" in text
    assert ("Not shown" in text) == (sentence is not None)
    assert sentence is None or sentence in text


def test_bare_neurons_and_no_attributes(tmp_path):
    bare = xr.Dataset(coords={"neuron": np.array(["0.0", "0.1"], object)})
    text = Elements(report.write(bare, tmp_path / "a.html").read_text("utf-8")).text
    assert "no number per neuron" in text


def test_unfinished_run_is_called_so(ds, tmp_path):
    half = ds.copy(deep=True)
    half.attrs |= {"complete": 0, "error_warning": "The error is large.", "counts_warning": "Few."}
    half["te"][4:] = np.nan
    text = Elements(report.write(half, tmp_path / "a.html").read_text("utf-8")).text
    assert "not finished" in text
    assert "The error is large. Few." in text


def test_everything_missing_is_a_page(ds, tmp_path):
    empty = ds.copy(deep=True)
    for name in ("te", "de", "mediated", "te_mediated", "effects", "activation"):
        empty[name] = empty[name] * np.nan
    text = Elements(report.write(empty, tmp_path / "a.html").read_text("utf-8")).text
    assert "No kept token is affected" in text


def test_remote_jobs(ds, tmp_path):
    remote = ds.assign(
        job_bytes_up=("job", [2_000_000, 3_000_000]), job_seconds=("job", [1.5, 2.5])
    )
    text = Elements(report.write(remote, tmp_path / "a.html").read_text("utf-8")).text
    assert "2 jobs, 5 MB sent, 4 s of the server's time." in text
    less = report.write(remote.drop_vars("job_seconds"), tmp_path / "b.html").read_text("utf-8")
    assert "2 jobs, 5 MB sent." in Elements(less).text


def test_frequency_recipe_has_its_own_section_and_words(ds, tmp_path):
    names = [*ds["effect"].values[:3], "kl_frequency_total"]
    other = ds.assign_coords(effect=np.array(names, object)).assign(
        frequency_cosine=("neuron", np.linspace(-1, 1, 30)),
        frequency_cosine_all=(("model_layer", "model_index"), np.ones((3, 30))),
        effect_mean=(("neuron", "effect"), np.arange(120.0).reshape(30, 4)),
        model_layer=np.arange(3),
    )
    other.attrs |= {"mediated_direct": "loss_frequency_direct", "counts": "counts.npy"}
    page = report.write(other, tmp_path / "a.html").read_text("utf-8")
    text = Elements(page).text
    assert "Strongest through the token-frequency direction" in text
    assert "Token frequencies: counts.npy." in text
    assert "the logits’ component along the token-frequency direction" in text
    for key in ("frequency", "frequency-shift", "frequency-layers"):
        assert f'data-plot="plot-{key}"' in page
    shift = report.figures.frequency_shift(other)
    assert sorted(shift.data[0].y) == [3.0 + 4 * row for row in range(30)]
    layers = report.figures.frequency_layers(other)
    assert [trace.name for trace in layers.data] == ["largest", "99 %", "median"]


def test_sets_are_shown_against_their_controls(ds, tmp_path):
    labels = np.array(
        ["chosen-0", "chosen-0 +1σ", *(f"random-0.{i} +1σ" for i in range(28))], object
    )
    sets = ds[["effects", "loss", "te", "de", "mediated"]].rename(neuron="set")
    sets = sets.drop_vars(["layer", "index"]).assign_coords(
        set=labels,
        set_kind=("set", np.array(["chosen"] * 2 + ["random"] * 28, object)),
        set_deviation=("set", np.arange(30) % 2.0),
        set_size=("set", np.full(30, 4)),
    )
    means = np.arange(120.0).reshape(30, 4)
    for name in ("effect_mean", "effect_abs_mean", "p_random"):
        sets[name] = (("set", "effect"), means)
    page = report.write(sets, tmp_path / "a.html").read_text("utf-8")
    elements = Elements(page)
    assert "Each chosen set against 14 random sets" in elements.text
    assert "replaced by its mean + k·σ over all tokens, k = 0, 1" in elements.text
    assert "on 512 set × token pairs" in elements.text
    details = [i for i in elements.attributes("id") if i.startswith("n-")]
    assert sorted(details) == ["n-chosen-0", "n-chosen-0__1σ"]
    targets = {target[1:] for target in elements.attributes("href")}
    assert set(details) <= targets <= set(elements.attributes("id"))
    random, chosen = report.figures.sets(sets, "loss_total").data
    assert list(chosen.y) == [0.0, 4.0]
    assert list(chosen.x) == [0.0, 1.0]
    assert len(random.y) == 28
    assert set(np.round(random.x)) == {0.0, 1.0}


def test_confidence_in_context_is_drawn_where_the_neuron_is_active(ds, tmp_path):
    above = np.zeros((30, 240), bool)
    above[3, [2, 10, 11, 39]] = True  # of these, 2 and 39 are not kept
    active = ds.assign(above_mean=(("neuron", "token"), above))
    page = report.write(active, tmp_path / "a.html", neurons=["11.3"]).read_text("utf-8")
    assert "11.3, at kept tokens where its activation is above its mean." in page
    trace = report.figures.against_loss(active, "11.3").data[0]
    assert list(trace.y) == pytest.approx(ds["effects"].values[3, [10, 11], 0].tolist())
    assert list(trace.x) == pytest.approx(ds["loss"].values[[10, 11]].tolist())


def test_words_are_those_of_the_dataset(ds, page, tmp_path):
    assert "token-frequency" not in Elements(page).text
    assert "LogitVar variance over the vocabulary" in Elements(page).text
    less = report.write(ds.drop_vars("logit_var"), tmp_path / "a.html").read_text("utf-8")
    assert "variance over the vocabulary" not in Elements(less).text


def test_only_shown_neurons_are_read_from_a_store(ds, tmp_path):
    path = tmp_path / "store.zarr"
    ds.to_zarr(path, encoding={"effects": {"chunks": (1, 240, 4)}}, consolidated=False)
    chunks = path / "effects" / "c"
    kept = {name.split(".")[1] for name in tables.strongest(tables.table(ds), 12)}
    for chunk in chunks.iterdir():
        if chunk.name not in kept:
            for file in chunk.rglob("*"):
                if file.is_file():
                    file.write_bytes(b"unreadable")
    lazy = xr.open_zarr(path, consolidated=False, chunks=None)
    with pytest.raises(Exception, match=r".+"):
        lazy["effects"].load()
    lazy = xr.open_zarr(path, consolidated=False, chunks=None)
    assert report.write(lazy, tmp_path / "a.html").exists()


def test_own_section(ds, tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "REGISTRY", list(sections.REGISTRY))

    @report.section(needs={"te": ("neuron",)})
    def mine(ds, options):
        figures = [report.Figure("mine", report.figures.spectrum(ds), "My figure.")]
        return report.Section("mine", "My section", "My lead.", figures)

    text = Elements(report.write(ds, tmp_path / "a.html").read_text("utf-8")).text
    assert "My section My lead. My figure." in text


def test_contexts_are_the_most_affected_kept_tokens(ds):
    found = contexts.detail(ds, contexts.Tokens(ds), "11.3", count=6)
    effect = np.abs(ds["effects"].sel(neuron="11.3", effect="loss_total").values)
    effect[~ds["keep"].values] = -1
    first, best = found.contexts[0], int(effect.argmax())
    assert (first.sequence, first.position) == divmod(best, 40)
    assert first.effect == signed(effect[best] * np.sign(ds["effects"].values[3, best, 0]))
    for context in found.contexts:
        assert [word.focus for word in context.words].count(True) == 1
        assert 0 < len(context.words) <= 40  # never over the end of a sequence
    places = [(context.sequence, context.position) for context in found.contexts]
    assert len(set(places)) == len(places)


def test_context_shows_tokens_numbers_and_shades(ds):
    tokens = contexts.Tokens(ds)
    context = contexts.detail(ds, tokens, "11.7", count=1).contexts[0]
    centre = context.sequence * 40 + context.position
    word = next(word for word in context.words if word.focus)
    assert word.text == str(ds["token_text"].values[centre]).replace("\n", "↵")
    assert abs(word.shades[0]) == 1
    values = word.numbers.split("|")
    assert values[0] == signed(float(ds["effects"].values[7, centre, 0]))
    assert values[2] == number(float(ds["activation"].values[7, centre]))
    assert values[3] == number(float(ds["loss"].values[centre]))
    assert values[4] == str(int(ds["rank"].values[centre]))
    assert len(values) == len(contexts.quantities(ds))
    last = ds["effects"].values[7, context.sequence * 40 + 39, 0]
    assert np.isnan(last)


def test_words():
    assert [number(x) for x in (0, 1234, 0.01234, -2.5, 1e-5, np.nan, -np.inf)] == [
        "0", "1,234", "0.0123", "−2.50", "1.00×10⁻⁵", "–", "−∞",
    ]  # fmt: skip
    assert number(999999) == "1.00×10⁶"
    assert [signed(0.5), signed(-0.5), signed(0)] == ["+0.500", "−0.500", "0"]
    assert [percent(x) for x in (0.855, -0.2, -99.0, np.nan, -0.004)] == [
        "86\u00a0%", "−20\u00a0%", "< −1000\u00a0%", "–", "0\u00a0%",
    ]  # fmt: skip
    assert effect_label("loss_total") == "Δ loss"
    assert effect_label("loss_frequency_direct") == "Δ loss (frequency frozen)"
    assert effect_label("kl_frequency_total") == "Δ KL to unigrams"
    assert effect_label("top1_total") == "top-1 change"
    assert effect_label("temperature_share") == "Δ temperature (share)"
