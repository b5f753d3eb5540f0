"""The page in a real browser: it draws without a network, sorts, and jumps."""

import pytest
from chromium import EXECUTABLE, Browser
from conftest import need
from report_data import OTHERS, synthetic

from confreg import report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if EXECUTABLE is None:
        need("chromium")
    return report.write(synthetic(), tmp_path_factory.mktemp("report") / "page.html")


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        browser.open(page)
        yield browser


def column(browser, index):
    return browser.evaluate(
        f"[...document.querySelector('table').tBodies[0].rows].map(r => r.cells[{index}].dataset.v)"
    )


def test_all_plots_are_drawn_without_complaint_or_network(browser):
    assert browser.evaluate("document.querySelectorAll('.plot').length") == 5
    assert browser.evaluate("document.querySelectorAll('#plot-weights .point').length") == 30
    assert browser.troubles() == []


def test_network_is_refused_and_noticed(page, tmp_path):
    """The policy holds, and the test above would see what broke it."""
    with Browser(tmp_path / "profile") as browser:
        browser.open(page)
        browser.evaluate(
            "document.body.append(Object.assign(new Image, {src: 'http://localhost:9/'}))"
        )
        browser.wait("performance.now() > 0")
        troubles = " ".join(browser.troubles())
    assert "Content Security Policy" in troubles


def test_table_sorts_by_click_and_by_key(browser):
    start = [float(value) for value in column(browser, 4)]
    assert start == sorted(start, reverse=True)
    head = "document.querySelectorAll('thead button')"
    browser.evaluate(f"{head}[5].click()")
    norms = [float(value) for value in column(browser, 5)]
    assert norms == sorted(norms, reverse=True)
    assert browser.evaluate(f"{head}[5].parentNode.ariaSort") == "descending"
    assert browser.evaluate(f"{head}[4].parentNode.ariaSort") == "none"
    browser.evaluate(f"{head}[5].focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent",
            type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r",
        )  # fmt: skip
    assert [float(value) for value in column(browser, 5)] == sorted(norms)
    browser.evaluate(f"{head}[0].click()")
    assert column(browser, 0) == [f"11.{index}" for index in range(30)]


def test_point_leads_to_its_detail(browser):
    shown = browser.evaluate("document.querySelectorAll('details.detail')[5].id").removeprefix("n-")
    point = f"{{points: [{{customdata: '{shown}'}}]}}"
    browser.evaluate(f"document.getElementById('plot-weights').emit('plotly_click', {point})")
    browser.wait(f"location.hash === '#n-{shown}' && document.getElementById('n-{shown}').open")
    top = f"document.getElementById('n-{shown}').getBoundingClientRect().top"
    browser.wait(f"{top} >= 0 && {top} < innerHeight")


def test_point_without_detail_leads_to_its_row(browser):
    row = "[...document.querySelectorAll('tbody tr')].find(r => !r.querySelector('a')).id.slice(2)"
    name = browser.evaluate(row)
    point = f"{{points: [{{customdata: '{name}'}}]}}"
    browser.evaluate(f"document.getElementById('plot-mediation').emit('plotly_click', {point})")
    assert name in browser.evaluate("document.getElementById('toast').textContent")
    assert browser.evaluate(f"document.getElementById('r-{name}').className") == "flash"


def test_tokens_are_coloured_and_tell_their_numbers(browser):
    word = "document.querySelector('details[open] .focus')"
    colour = f"getComputedStyle({word}).backgroundImage"
    before = browser.evaluate(colour)
    assert "0.62" in before
    browser.evaluate("document.querySelector('input[name=shade-detail][value=\"1\"]').click()")
    assert browser.evaluate(colour) != before
    browser.evaluate(f"{word}.focus()")
    tip = browser.evaluate("document.getElementById('tip').innerText")
    for part in ("Δ loss", "Δ entropy", "activation", "unablated loss"):
        assert part in tip


@pytest.mark.parametrize("dark", [False, True])
def test_phone_shows_the_page_without_scrolling_sideways(page, tmp_path, dark):
    with Browser(tmp_path / "profile", width=390, height=844, dark=dark) as browser:
        browser.open(page)
        assert browser.evaluate("document.documentElement.scrollWidth") == 390
        paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(20, 23, 27)") == dark
        ink = "getComputedStyle(document.querySelector('.xtick text')).fill"
        browser.wait(f"{ink} === 'rgb({'228, 230, 233' if dark else '29, 33, 39'})'")
        assert browser.troubles() == []


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """``other("latents")``: a browser with the page of a dataset that nobody has seen."""
    if EXECUTABLE is None:
        need("chromium")
    folder = tmp_path_factory.mktemp("others")
    with Browser(folder / "profile") as browser:

        def show(name):
            browser.open(report.write(OTHERS[name](), folder / f"{name}.html"))
            return browser

        yield show


@pytest.mark.parametrize("name", list(OTHERS))
def test_pages_of_others_are_drawn_without_complaint(other, name):
    browser = other(name)
    assert browser.troubles() == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= 1280


def test_reader_chooses_what_is_plotted(other):
    browser = other("latents")
    ds = OTHERS["latents"]()
    plot = "document.getElementById('plot-explore-latent')"

    def choose(axis, text):
        select = f"document.querySelector('#explore-latent [data-axis={axis}]')"
        browser.evaluate(
            f"{select}.value = [...{select}.options].find(o => o.text === '{text}').value;"
            f"{select}.dispatchEvent(new Event('change'))"
        )

    def drawn(axis):
        browser.wait(f"{plot}.data.length > 0")
        return browser.evaluate(f"[...{plot}.data[0].{axis}]")

    choose("x", "density")
    choose("y", "decoder norm")
    browser.wait(f"{plot}.layout.xaxis.title.text === 'density'")
    labels = [int(label) for label in drawn("customdata")]
    assert drawn("x") == pytest.approx(ds["density"].values[labels].tolist(), rel=1e-4)
    assert drawn("y") == pytest.approx(ds["decoder_norm"].values[labels].tolist(), rel=1e-4)
    choose("colour", "split")
    browser.wait(f"{plot}.data.length === 2")
    assert set(browser.evaluate(f"{plot}.data.map(t => t.name)")) == {"train", "test"}
    before = browser.evaluate(f"{plot}.layout.yaxis.type")
    browser.evaluate("document.querySelector('#explore-latent [data-log=y]').click()")
    browser.wait(f"{plot}.layout.yaxis.type !== '{before}'")
    assert browser.troubles() == []


def test_tables_of_others_sort_numbers_and_texts(other):
    browser = other("latents")
    titles = browser.evaluate(
        "[...document.querySelectorAll('thead button')].map(b => b.textContent)"
    )
    at = titles.index("density")
    browser.evaluate(f"document.querySelectorAll('thead button')[{at}].click()")
    values = [float(value) for value in column(browser, at)]
    assert values == sorted(values, reverse=True)
    at = titles.index("split")
    browser.evaluate(f"document.querySelectorAll('thead button')[{at}].click()")
    assert column(browser, at) == sorted(column(browser, at), reverse=True)


def test_heat_map_shows_the_chosen_quantity(other):
    browser = other("digits")
    select = "document.querySelector('[data-layers=plot-map-effects]')"
    browser.evaluate(f"{select}.value = '1'; {select}.dispatchEvent(new Event('change'))")
    traces = "document.getElementById('plot-map-effects').data"
    browser.wait(f"{traces}[1].visible === true && {traces}[0].visible === false")
    title = "document.querySelector('#plot-map-effects .cbtitle').textContent"
    browser.wait(f"{title}.startsWith('Δ predicted; ')")


def test_point_of_another_axis_leads_to_its_row(other):
    browser = other("digits")
    point = "{points: [{customdata: '72'}]}"
    browser.evaluate(f"document.getElementById('plot-explore-image').emit('plotly_click', {point})")
    flashed = "document.querySelector('tr.flash th').dataset.v"
    assert browser.evaluate(flashed) == "72"


def test_views_of_text_are_coloured_each_by_its_own_choice(other):
    browser = other("steering")
    browser.evaluate("document.querySelector('input[name=shade-text][value=\"1\"]').click()")
    chosen = "[...document.querySelectorAll('.shades')].map(s => s.dataset.shade)"
    assert browser.evaluate(chosen) == ["0", "1"]
    browser.evaluate("document.querySelector('#text .t').click()")
    tip = browser.evaluate("document.getElementById('tip').innerText")
    assert "surprise" in tip
