"""The page in a real browser: it draws without a network, sorts, and jumps."""

import pytest
from chromium import EXECUTABLE, Browser
from conftest import need
from report_data import synthetic

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
