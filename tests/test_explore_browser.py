"""Journeys beyond one comparison, in a real browser: why it is not faster, and the history."""

import re

from test_browser import browser, pytestmark, visit  # noqa: F401


def ran(tab, prompt, *methods):
    tab.prompt.fill(prompt)
    tab.methods(*methods)
    tab.page.locator("#run").click()
    tab.wait("running")
    assert tab.wait("finished", "failed") == "finished", tab.words


def test_a_run_is_explained_kept_found_compared_opened_and_deleted(visit):  # noqa: F811
    tab = visit()
    tab.small(steps=2)
    ran(tab, "a rocket and a pizza in the desert", "tome")
    explained(tab)
    ran(tab, "an owl at night")
    runs = tab.page.locator(".run")
    tab.page.get_by_role("tab", name="History").click()
    runs.nth(1).wait_for()
    assert "owl" in runs.nth(0).inner_text() and "pizza" in runs.nth(1).inner_text()
    laid_side_by_side(tab, runs)
    found(tab, runs)
    opened(tab, runs)
    deleted(tab, runs)


def explained(tab):
    tab.page.get_by_role("tab", name="Why?").click()
    tab.page.locator("#find").click()
    tab.wait("running")
    assert tab.wait("finished", "failed") == "finished", tab.words
    reasons = tab.page.locator(".reason")
    assert reasons.count() == 2 and "at best" in reasons.nth(1).inner_text()
    shares = tab.page.locator(".why tbody tr").all()
    figures = [row.locator("td").all_inner_texts() for row in shares if "Touches" not in row.inner_text() and "%" in row.inner_text()]
    for column in zip(*figures):
        assert abs(sum(float(text.split()[0]) for text in column) - 100) < 4  # rounded for people
    assert tab.page.locator(".parts").nth(1).get_attribute("aria-label").startswith("Token merging: Convolutions")


def laid_side_by_side(tab, runs):
    both = tab.page.get_by_role("button", name="Compare two")
    assert both.is_disabled()
    runs.nth(0).locator("input").check()
    runs.nth(1).locator("input").check()
    both.click()
    pair = tab.page.locator(".history .numbers")
    pair.get_by_text("same device").wait_for()
    assert pair.locator("tbody tr").count() == 2 and re.search(r"[\d.]+×", pair.inner_text())


def found(tab, runs):
    seek = tab.page.get_by_label("Search the history")
    whole = runs.count()  # more than two where others were here before: this page shows everybody's
    seek.fill("rocket tome")
    tab.page.wait_for_function("document.querySelectorAll('.run').length === 1")
    assert "pizza" in runs.inner_text()
    seek.fill("nothing like it")
    tab.page.get_by_text("Nothing was found.").wait_for()
    seek.fill("")
    tab.page.wait_for_function("count => document.querySelectorAll('.run').length === count", arg=whole)


def opened(tab, runs):
    runs.nth(1).get_by_role("button", name="Open").focus()
    tab.page.keyboard.press("Enter")
    assert tab.wait("restored") and tab.words.startswith("Opened from the history")
    tab.page.locator(".said").get_by_text("“a rocket and a pizza in the desert”, seed").wait_for()
    assert tab.prompt.input_value() == "a rocket and a pizza in the desert" and tab.page.locator("#method-tome input").is_checked()
    assert tab.page.locator(".card img").count() == 2 and all(re.fullmatch(r"[\d.]+ s", time) for time in tab.times())


def deleted(tab, runs):
    tab.page.reload()
    tab.page.get_by_role("tab", name="History").click()
    runs.nth(1).wait_for()  # the same browser is the same visitor
    whole, remove = runs.count(), runs.nth(0).get_by_role("button", name="Delete")
    remove.click()
    runs.nth(0).get_by_role("button", name="Really?").click()
    tab.page.wait_for_function("count => document.querySelectorAll('.run').length === count", arg=whole - 1)
    assert "pizza" in runs.nth(0).inner_text()


def test_a_sweep_is_drawn_stopped_continued_and_opened_again(visit, server):  # noqa: F811
    tab = visit()
    tab.small(steps=2)
    tab.prompt.fill("a fox in the snow")
    tab.page.get_by_role("tab", name="Sweep").click()
    tab.page.get_by_label("Values").first.fill("2")
    tab.page.locator("#begin").click()
    assert tab.wait("refused") and "ratio must be" in tab.page.locator("#ask-vary .refusal").inner_text()
    tab.page.get_by_label("Values").first.fill("0.25, 0.5")
    tab.page.get_by_label("Seeds").fill("0-2")
    tab.page.locator("#begin").click()
    tab.page.wait_for_function("/Picture [3-9] of 9/.test(document.querySelector('#status b').textContent)", timeout=240_000)
    tab.page.locator("#stop").click()
    tab.wait("stopped")
    tab.page.locator(".sweep td img").first.wait_for()  # what was finished stays
    tab.page.locator("#begin").click()
    tab.wait("running")
    assert tab.wait("finished", "failed") == "finished", tab.words
    assert tab.page.locator(".sweep td img").count() == 6  # two values across three seeds
    axes(tab.page)
    taken_away(tab)
    again(tab)
    for theme, width in (("light", 1280), ("dark", 390)):
        tab.page.set_viewport_size({"width": width, "height": 844})
        tab.page.evaluate("dark => document.body.classList.toggle('dark', dark)", theme == "dark")
        assert not tab.page.evaluate("document.documentElement.scrollWidth > innerWidth")


def test_the_fastest_way_under_a_bound_is_found(visit):  # noqa: F811
    tab = visit()
    tab.small(steps=2)
    tab.page.get_by_role("tab", name="Sweep").click()
    tab.page.get_by_label("Prompts").fill("a cat\na dog\nan owl")
    tab.page.get_by_text("Find me the fastest").click()
    tab.page.locator("#seek").click()
    assert tab.wait("refused") and "4 to 8 prompts" in tab.page.locator("#ask-vary .refusal").inner_text()
    tab.page.get_by_label("Prompts").fill("a cat\na dog\nan owl\na fox")
    tab.page.get_by_label("Its value").fill("90")
    tab.page.locator("#seek").click()
    tab.wait("running")
    assert tab.wait("finished", "failed") == "finished", tab.words
    assert "verified on 2 pictures that the search did not see" in tab.words
    assert tab.page.locator(".sweep .answer").inner_text() in tab.words and tab.page.locator(".sweep td img").count() == 2 * 5  # four ways, and the full model


def axes(page):
    """The same pictures along other axes, without the server."""
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_label("Down", exact=True).select_option("row")
    assert page.locator(".sweep td img").count() == 6  # full model and merging, three seeds
    page.get_by_label("Across", exact=True).select_option("tome.ratio")
    assert page.locator(".sweep td img").count() == 4
    assert page.get_by_label("Across", exact=True).evaluate("select => select === document.activeElement")
    assert page.locator(".sweep polygon").count() == 2 and page.locator(".sweep circle.best").count() >= 1  # a band for each row
    page.get_by_label("Shown", exact=True).select_option("seconds")
    assert "Time" in page.locator(".sweep .plot").first.inner_text() and not asked


def taken_away(tab):
    with tab.page.expect_download() as download:
        tab.page.locator("#tables a").first.click()
    lines = open(download.value.path()).read().splitlines()
    assert len(lines) == 10 and lines[0].startswith("row,tome.ratio,prompt,seed,steps taken,seconds")


def again(tab):
    tab.page.reload()
    tab.page.get_by_role("tab", name="History").click()
    entry = tab.page.locator(".run", has_text="a fox in the snow")
    assert "sweep of 9 pictures: tome.ratio 0.25, 0.5" in entry.inner_text()
    entry.get_by_role("button", name="Open").click()
    tab.wait("restored")
    tab.page.locator(".sweep td img").nth(5).wait_for()
