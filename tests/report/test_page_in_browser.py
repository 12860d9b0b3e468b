"""A page in Chromium: no complaint, no request, names that stay text; by keyboard, at three widths, light and dark."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vistok.report.page import write_page

from .pages import CLOSING, HOSTILE, sections

pytestmark = pytest.mark.slow

WIDTHS = ((390, "light"), (1280, "dark"), (1600, "light"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report #1.html"
    write_page(path, CLOSING, sections())
    return path


@pytest.fixture(scope="module", params=WIDTHS, ids=str)
def page(request: pytest.FixtureRequest, browser: Any, file: Path) -> Iterator[Any]:
    """The page at one width and scheme; what it asks for and complains of is checked when the test is over."""
    width, scheme = request.param
    opened = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    asked: list[str] = []
    said: list[str] = []
    opened.on("request", lambda one: asked.append(one.url))
    opened.on("console", lambda one: said.append(one.text))
    opened.on("pageerror", lambda one: said.append(str(one)))
    opened.goto(file.as_uri())
    yield opened
    title = opened.title()
    opened.close()
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    assert said == []
    assert title == CLOSING


def test_the_page_is_as_wide_as_the_screen_and_readable_in_both_schemes(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    scheme = "dark" if page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") else "light"
    assert page.evaluate(_CONTRAST) >= 4.5
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Theme").click(click_count=2 if scheme == "light" else 1)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert page.evaluate(_CONTRAST) >= 4.5


def test_names_captions_and_headings_are_text(page: Any) -> None:
    assert page.locator("img[src='x'], [onerror]").count() == 0
    assert page.locator("script:not([type])").count() == 1
    assert page.locator("h1").inner_text() == CLOSING
    assert page.locator("h4").first.inner_text() == HOSTILE
    assert page.locator(".caption").first.inner_text() == CLOSING
    assert page.locator("section h2").first.inner_text() == HOSTILE
    assert page.get_by_role("cell", name=HOSTILE).count() == 1


def test_the_slider_moves_by_keyboard_and_by_mouse(page: Any) -> None:
    slider = page.locator("[data-slider] input")
    clip = "getComputedStyle(document.querySelector('.above')).clipPath"
    slider.focus()
    before = page.evaluate(clip)
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert slider.input_value() == "60" and slider.get_attribute("aria-valuetext") == "60 % original"
    moved = page.evaluate(clip)
    assert moved != before
    stage = page.locator("[data-slider]")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 20)
    page.mouse.up()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 20)
    assert slider.input_value() == "25" and page.evaluate(clip) not in (before, moved)


def test_a_picture_shows_its_tokens_by_keyboard(page: Any) -> None:
    tokens = page.locator(".map").first
    assert not tokens.is_visible()
    page.locator("input[value=picture]").first.focus()
    page.keyboard.press("ArrowRight")
    assert tokens.is_visible() and not page.locator(".above").is_visible()
    page.keyboard.press("ArrowRight")
    assert not tokens.is_visible() and page.locator(".above").is_visible()


def test_a_table_sorts_by_keyboard_numbers_as_numbers_and_what_is_missing_last(page: Any) -> None:
    table = page.locator("table").first
    value = table.get_by_role("button", name="value")
    value.focus()
    column = "[...document.querySelector('table').tBodies[0].rows].map(row => row.cells[1].textContent)"
    page.keyboard.press("Enter")
    heading = table.locator("th").nth(1)
    assert heading.get_attribute("aria-sort") == "descending"
    assert page.evaluate(column) == ["101.5", "10", "9", "-"]
    page.keyboard.press("Space")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert page.evaluate(column) == ["9", "10", "101.5", "-"]
    table.get_by_role("button", name="name").press("Enter")
    assert heading.get_attribute("aria-sort") is None
    assert page.evaluate(column) == ["9", "10", "-", "101.5"]


def test_what_is_kept_follows_budget_and_method_by_keyboard(page: Any) -> None:
    shade, told = page.locator(".dropped path"), page.locator("[data-told]").first
    cells = "document.querySelector('.dropped path').getAttribute('d').split('M').length - 1"
    assert page.evaluate(cells) == 4 and f"5 of 9 tokens are left behind the last layer. Answer: {CLOSING}" in (
        told.text_content()
    )
    budget = page.locator("[data-budget]")
    budget.press("ArrowRight")
    assert budget.get_attribute("aria-valuetext") == "25 %"
    assert page.evaluate(cells) == 8 and "Answer: second." in told.inner_text() and shade.count() == 1
    page.locator("[data-method]").select_option("other")
    assert told.inner_text().startswith("Not asked at this budget.")
    budget.press("ArrowLeft")
    assert page.evaluate(cells) == 0 and "9 of 9" in told.inner_text()
    page.locator("[data-method]").select_option(HOSTILE)


def test_a_curve_is_hidden_by_its_legend(page: Any) -> None:
    curve = page.locator("[data-curve='8']:visible")
    assert curve.count() == 1
    page.locator("[data-toggle='8']").press("Space")
    assert curve.count() == 0


def test_everything_that_is_reached_by_tab_shows_that_it_has_the_focus(page: Any) -> None:
    seen = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        told = page.evaluate(_FOCUS)
        assert told["shown"], told
        seen.add(told["name"])
    assert {"A", "BUTTON", "INPUT", "DIV"} <= seen


# The least contrast of any text with what lies behind it, by WCAG 2.
_CONTRAST = """() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const linear = [r, g, b].map((c) => ((c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = channels(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] > 0.7) return color;
    }
    return [255, 255, 255];
  };
  let least = 21;
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.getClientRects().length || ["SCRIPT", "STYLE"].includes(node.tagName)) continue;
    const style = getComputedStyle(node);
    const ink = channels(node instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(node))].sort((x, y) => y - x);
    least = Math.min(least, (a + 0.05) / (b + 0.05));
  }
  return least;
}"""

# What has the focus, and whether an outline shows it: on itself, on what is drawn for it or on what holds it.
_FOCUS = """() => {
  const node = document.activeElement;
  const around = [node, node.nextElementSibling, node.closest("[data-slider]")].filter(Boolean);
  const shown = around.some((one) => {
    const style = getComputedStyle(one);
    return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1;
  });
  return { name: node.tagName, shown: shown || node === document.body };
}"""
