"""Lessons as a pupil and a teacher go through them, in a real browser, on the tiny model."""

import pytest
from test_browser import PATIENCE, Visit, browser, pytestmark  # noqa: F401

from fastviz.lessons import LESSONS
from fastviz.lessons.words import LANGUAGES, read

ENGLISH = read("en")
SHOWN = "[...document.querySelectorAll('.learn article > section')].filter((each) => !each.hidden).length"


@pytest.fixture
def pupil(browser, tiny_server):  # noqa: F811
    """Opens tabs on a lesson; at the end none of them may have complained or asked another origin for anything."""
    tabs = []

    def open_tab(lesson="slow", **told):
        tab = Visit(browser, tiny_server, **told)
        tabs.append(tab)
        tab.page.evaluate(f"location.hash = 'learn/{lesson}'")
        learn(tab)
        return tab

    yield open_tab
    for tab in tabs:
        tab.context.close()
    assert [each for tab in tabs for each in tab.complaints] == []


def learn(tab):
    tab.page.locator("#learn-tab-button").click()
    tab.page.locator(".learn h2").wait_for()


def title(tab, key, language="en"):
    tab.page.locator(".learn h2", has_text=read(language)["lessons"][key]["title"]).wait_for()


def options(tab):
    return tab.page.locator(".options button")


def test_predict_see_run_here_and_go_on(pupil):
    tab = pupil("reuse")
    words = ENGLISH["lessons"]["reuse"]
    title(tab, "reuse")
    assert tab.page.evaluate(SHOWN) == 3  # text, question and papers: no result before the prediction
    assert not tab.page.locator(".learn .cards").is_visible() and tab.page.locator(".verdict").inner_text() == ""
    options(tab).nth(0).click()
    assert "“" + words["options"]["late"] in tab.page.locator(".verdict").inner_text() and options(tab).nth(1).get_attribute("class") == "true"
    assert ENGLISH["ui"]["stale"] in tab.page.locator(".stale").inner_text()  # shipped for other weights than the tiny model's
    run_here(tab)
    tab.page.get_by_role("tab", name="Pictures").click()
    assert tab.page.locator("#board .card").count() == len(words["rows"]) + 1
    learn(tab)
    tab.page.locator(".turn .next").click()
    title(tab, "merge")
    assert tab.page.evaluate("document.activeElement.tagName") == "H2" and not tab.page.locator(".learn .cards").is_visible()
    assert tab.page.evaluate("location.hash") == "#learn/merge"


def run_here(tab):
    """What is measured here takes the place of what was shipped."""
    pictures = tab.page.locator(".learn .card img")
    shipped = [picture.get_attribute("src") for picture in pictures.all()]
    tab.page.locator(".run-here").click()
    tab.wait("running")
    tab.page.locator(".learn .stop-here").wait_for()
    assert tab.wait("finished", "failed") == "finished", tab.page.locator(".learn .progress").inner_text()
    tab.page.locator(".source", has_text="Measured here").wait_for()
    here = [picture.get_attribute("src") for picture in pictures.all()]
    assert len(here) == len(shipped) and all(source.startswith("data:image/png") for source in here)
    assert tab.page.locator(".stale").count() == 0 and tab.page.locator(".run-here").is_enabled()


def test_a_run_is_stopped_from_the_lesson(pupil):
    tab = pupil("slow")
    options(tab).nth(2).click()
    tab.page.locator(".run-here").click()
    tab.wait("running")
    tab.page.locator(".learn .stop-here").click()
    tab.wait("stopped", "idle")
    tab.page.wait_for_function("!document.querySelector('.run-here').disabled", timeout=PATIENCE)
    assert options(tab).nth(2).get_attribute("aria-pressed") == "true"


def test_the_language_comes_from_the_browser_and_then_from_the_menu(browser, tiny_server, pupil):  # noqa: F811
    tab = pupil("steps")
    menu = tab.page.get_by_label("Language", exact=True)
    assert menu.input_value() == "en" and [each.get_attribute("value") for each in menu.locator("option").all()] == list(LANGUAGES)
    options(tab).nth(1).click()
    menu.select_option("de")
    title(tab, "steps", "de")
    assert tab.page.evaluate("document.documentElement.lang") == "de" and options(tab).nth(1).get_attribute("aria-pressed") == "true"
    assert read("de")["ui"]["run"] in tab.page.locator(".run-here").inner_text() and "0," in tab.page.locator(".result").inner_text()
    tab.page.locator("#learn-tab-button", has_text=read("de")["page"]["Learn"]).wait_for()
    assert tab.page.locator("#run").text_content().strip() == read("de")["page"]["Run"]
    tab.page.reload()
    learn(tab)
    title(tab, "steps", "de")
    tab.page.locator("#language").select_option("en")
    title(tab, "steps")
    assert tab.page.locator("#run").text_content().strip() == "Run"
    spanish = browser.new_context(locale="es-MX")
    page = spanish.new_page()
    page.goto(tiny_server.address)
    page.locator("#learn-tab-button", has_text=read("es")["page"]["Learn"]).click()
    page.locator(".learn h2", has_text=read("es")["lessons"]["slow"]["title"]).wait_for()
    spanish.close()


def test_teachers_step_with_keys_and_reveal_when_they_like(pupil):
    tab = pupil("slow")
    size = "parseFloat(getComputedStyle(document.querySelector('.learn')).fontSize)"
    small = tab.page.evaluate(size)
    tab.page.get_by_role("button", name=ENGLISH["ui"]["teacher"]).click()
    assert tab.page.evaluate(size) > 1.2 * small
    shown = [tab.page.evaluate(SHOWN)]
    for key in ("ArrowRight", "1", "ArrowRight", "PageDown", "ArrowRight", "ArrowLeft"):
        tab.page.keyboard.press(key)
        shown.append(tab.page.evaluate(SHOWN))
        if key == "1":
            assert options(tab).nth(0).get_attribute("aria-pressed") == "true" and tab.page.locator(".verdict").inner_text() == ""
            assert tab.page.locator(".options .true").count() == 0 and tab.page.locator(".learn .reveal").is_visible()
    assert shown == [1, 2, 2, 3, 4, 6, 4]  # the papers come with the last part
    assert tab.page.locator(".verdict").inner_text() != "" and not tab.page.locator(".learn .reveal").is_visible()
    for _ in range(2):
        tab.page.keyboard.press("ArrowRight")
    title(tab, "steps")
    tab.page.reload()
    learn(tab)
    assert tab.page.get_by_role("button", name=ENGLISH["ui"]["teacher"]).get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("width, theme", ((390, "light"), (1280, "dark")))
def test_every_lesson_fits_and_can_be_told_aloud(pupil, width, theme):
    tab = pupil("slow", width=width, theme=theme)
    for lesson in LESSONS:
        tab.page.locator(".learn nav button").nth(LESSONS.index(lesson)).click()
        title(tab, lesson.key)
        options(tab).nth(0).click()
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        words = ENGLISH["lessons"][lesson.key]
        spoken = tab.page.locator(".learn").aria_snapshot()
        for part in (f'navigation "{ENGLISH["ui"]["lessons"]}"', f'heading "{LESSONS.index(lesson) + 1}. {words["title"]}" [level=2]',
                     f'heading "{ENGLISH["ui"]["predict"]}" [level=3]', f'heading "{words["closing"]["title"]}" [level=3]', "group", "math"):
            assert part in spoken, part
        nameless = "[...document.querySelectorAll('.learn :is(button, select)')].filter((each) => !each.textContent.trim() && !each.ariaLabel).length"
        assert tab.page.evaluate(nameless) == 0
        assert tab.page.evaluate("[...document.querySelectorAll('.learn img')].filter((each) => !each.alt).length") == 0
        assert tab.page.evaluate("[...document.querySelectorAll('.learn svg')].filter((each) => !each.ariaLabel).length") == 0
        assert faint(tab) == []


def faint(tab):
    """Texts of the lesson whose contrast with what is behind them is below 4.5 (WCAG 2.2, 1.4.3)."""
    return tab.page.evaluate("""() => {
      const parse = (text) => text.match(/[\\d.]+/g).map(Number);
      const light = (rgb) => rgb.slice(0, 3).map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
      const behind = (node) => { for (let at = node; at; at = at.parentElement) { const rgba = parse(getComputedStyle(at).backgroundColor); if (rgba.length === 3 || rgba[3] === 1) return rgba; } return [255, 255, 255]; };
      const walk = document.createTreeWalker(document.querySelector(".learn"), NodeFilter.SHOW_TEXT), found = [];
      while (walk.nextNode()) {
        const node = walk.currentNode.parentElement;
        if (!walk.currentNode.data.trim() || !node.offsetParent || node.closest("svg, button:disabled, .veil")) continue;
        const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) found.push(walk.currentNode.data.trim());
      }
      return found; }""")
