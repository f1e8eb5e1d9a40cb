"""The report's page in a real browser: the features can be searched, sorted and read, at any width and by keyboard, without an error."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from made_results import ENTRY, make_results
from temporallens.figures.save import save
from temporallens.report.browser import Browsed, packed
from temporallens.report.page import write_report

HOSTILE = "</script><img src=x onerror=alert(1)>"
FEATURES, BINS = 120, 6
WORDS = {"5": " moon", "6": " rain", "7": HOSTILE, "8": " Trade"}


def table(masked: bool) -> dict[str, Any]:
    """Feature f fires more often the higher its number; feature 17 fires on rain at position 3."""
    rate = np.outer(np.arange(FEATURES) / FEATURES, np.linspace(1, 0.2, BINS))
    context = {"tokens": [5, 7, 8], "place": 1, "position": 2, "activation": 1.5, "sequence": 0, "index": 2}
    contexts: list[list[dict[str, Any]]] = [[context] for _ in range(FEATURES)]
    contexts[17] = [{**context, "tokens": [5, 6], "place": 1, "position": 3}]
    contexts[0] = []
    return {
        "tokens": 600,
        "documents": 4,
        "first": [1, 2, 3, 4, 5, 6],
        "last": [1, 2, 3, 4, 5, 6],
        "bin_tokens": [100] * BINS,
        "firings": [round(600 * row.mean()) for row in rate],
        "mean": [1.0] * FEATURES,
        "rate": rate.tolist(),
        "low": (0.5 * rate).tolist(),
        "high": (0.9 * rate).tolist(),
        "open": np.tile(np.linspace(0, 1, BINS), (FEATURES, 1)).tolist() if masked else None,
        "contexts": contexts,
        "words": WORDS,
    }


def positions() -> dict[str, Any]:
    """Every second feature is measured; the first ten of those are specialised."""
    own = list(range(0, FEATURES, 2))
    columns = {name: [0.01 * number for number in own] for name in ("information", "specialisation", "eta2", "reliability")}
    return {"features": {"feature": own, **columns, "q": [0.01 if number < 20 else 0.5 for number in own]}}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    figure = Figure(figsize=(8, 4))
    figure.add_subplot().plot([0, 1])
    picture = save(figure, folder / "picture.png")
    clusters = {"clusters": 2, "labels": [number % 3 - 1 for number in range(FEATURES)]}
    browsed = [
        Browsed("masked, seed 0", table(True), positions(), clusters),
        Browsed("plain, seed 0", table(False), None, None, names={4: "north", 5: HOSTILE}),
    ]
    pictures = {"A picture": picture, "Another picture": picture}
    beside = {ENTRY: "Another picture"}
    write_report(make_results(name="browsed"), pictures, "name: browsed\n", folder / "report.html", browsed, beside)
    return folder / "report.html"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any, report: Path) -> Iterator[Any]:
    """The report, opened; whatever the browser complains about fails the test."""
    opened, complaints = chromium.new_page(viewport={"width": 1440, "height": 1000}), []
    opened.on("console", lambda message: complaints.append(message.text) if message.type in {"error", "warning"} else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else complaints.append(request.url))
    opened.goto(report.as_uri())
    yield opened
    opened.close()
    assert complaints == []


def shown(page: Any) -> list[int]:
    return [int(text) for text in page.locator("#list tbody button").all_inner_texts()]


def found(page: Any, count: int) -> None:
    """Wait until so many features are listed: typing is answered after a moment."""
    from playwright.sync_api import expect

    expect(page.locator("#list tbody tr")).to_have_count(count)


def test_features_are_listed_by_specialisation_and_the_first_is_open(page: Any) -> None:
    assert shown(page)[:3] == [118, 116, 114]
    assert len(shown(page)) == 50
    assert page.locator("#feature h3").inner_text() == "Feature 118"
    assert "120 of 120 features, 50 shown; 1 never fire" in page.locator("#count").inner_text()
    page.get_by_role("button", name="Show more").click()
    assert len(shown(page)) == 100


def test_a_word_or_a_number_finds_features(page: Any) -> None:
    page.get_by_label("Search").fill("RAIN")
    found(page, 1)
    assert shown(page) == [17]
    page.get_by_label("Search").fill("#11")
    found(page, 11)
    assert shown(page)[0] == 11
    assert set(shown(page)) == {11, *range(110, 120)}


def test_sorting_and_the_specialised_ones_alone(page: Any) -> None:
    page.get_by_label("Sort by").select_option("density")
    assert shown(page)[:2] == [119, 118]
    page.get_by_label("only features that depend on position").check()
    assert shown(page) == list(range(18, -1, -2))
    page.get_by_label("Sort by").select_option("number")
    assert shown(page) == list(range(0, 20, 2))


def test_a_feature_shows_its_numbers_mask_and_contexts_as_text(page: Any) -> None:
    page.get_by_label("Search").fill("20")
    found(page, 1)
    page.locator("#list tbody button").click()
    pane = page.locator("#feature")
    assert pane.locator("h3").inner_text() == "Feature 20"
    assert pane.locator("mark").inner_text() == HOSTILE
    assert pane.locator(".words").inner_text() == f" moon{HOSTILE} Trade"
    assert "position 2" in pane.locator(".contexts").inner_text()
    assert pane.locator("polyline.mask").count() == 1
    assert page.locator("img[src=x]").count() == 0


def test_the_profile_is_read_by_keyboard(page: Any) -> None:
    page.locator("svg.profile").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    reading = page.locator(".reading").inner_text()
    assert reading.startswith("position 2: fires on 82")
    assert "of 100 tokens" in reading
    assert "open 20 %" in reading


def test_the_picture_beside_an_answer_opens_its_figure(page: Any) -> None:
    page.locator(".answer .thumbnail").click()
    assert page.locator("dialog.zoom img").get_attribute("alt") == "Another picture"
    page.get_by_role("button", name="Close").click()
    assert not page.locator("dialog.zoom").is_visible()


def test_on_paper_everything_is_open_and_nothing_is_a_control(page: Any) -> None:
    page.emulate_media(media="print")
    assert page.get_by_text("explains a fraction of").first.is_visible()
    assert not page.locator("#browser").is_visible() and not page.locator("#next").is_visible()
    widths = page.evaluate("Array.from(document.querySelectorAll('.gallery img')).map((image) => image.clientWidth)")
    assert min(widths) > 1000


def test_another_dictionary_has_only_the_columns_that_it_has(page: Any) -> None:
    page.locator("#dictionary").select_option("plain, seed 0")
    heads = page.locator("#list thead th").all_inner_texts()
    assert heads == ["feature", "by position", "fires", "peak position"]
    assert page.locator("polyline.mask").count() == 0
    assert not page.get_by_role("checkbox").is_visible()
    assert shown(page)[0] == 119


def test_everything_is_reached_by_keyboard_and_a_figure_is_enlarged_and_closed(page: Any) -> None:
    page.locator("#figure-0 a").focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog.zoom").is_visible()
    assert page.locator("dialog.zoom img").get_attribute("alt") == "A picture"
    page.keyboard.press("ArrowRight")
    assert page.locator("dialog.zoom p").inner_text() == "2 of 2: Another picture"
    page.keyboard.press("Escape")
    assert not page.locator("dialog.zoom").is_visible()
    page.get_by_label("Sort by").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("#feature h3").inner_text().startswith("Feature ")
    assert page.evaluate("Array.from(document.images).every((image) => image.alt)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_sticks_out_at_any_width_in_either_scheme(page: Any, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


def test_what_is_embedded_cannot_end_its_element() -> None:
    text = packed(Browsed(HOSTILE, table(False), None, None))
    assert "<" not in text
    assert json.loads(text)["title"] == HOSTILE


def test_4608_features_stay_small() -> None:
    one = table(True)
    for name in ("firings", "mean", "rate", "low", "high", "open", "contexts"):
        one[name] = (one[name] * 39)[:4608]
    assert len(packed(Browsed("large", one, None, None))) < 4e6


def test_what_is_known_of_tokens_has_columns_of_its_own():
    tokens = {"purities": [0.25] * (FEATURES - 1) + [None], "persistences": [0.5] * FEATURES}
    columns = json.loads(packed(Browsed("plain", table(False), None, None, tokens)).replace("\\u003c", "<"))["columns"]
    assert columns == {"purity": tokens["purities"], "persistence": tokens["persistences"]}


def test_positions_carry_their_names(page: Any) -> None:
    page.locator("select").first.select_option(label="plain, seed 0")
    page.locator("#list tbody button").first.click()
    axis = page.locator("#feature svg").first.text_content()
    assert "north" in axis and HOSTILE in axis and "1" in axis
    page.locator("#feature svg").first.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert "position north: fires on" in page.locator("#feature .reading").first.inner_text()
