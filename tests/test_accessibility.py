"""What axe-core finds on every tab, in light and in dark. Without Chromium skipped, unless FASTVIZ_BROWSER=required."""

from axe_playwright_python.sync_playwright import Axe
from test_browser import browser, pytestmark, visit  # noqa: F401


def findings(page, where):
    """[(where, rule, selector, what is wrong)] of all that hinders a person seriously."""
    page.add_style_tag(content="*, *::before, *::after { transition: none !important }")  # colours that change slowly have arrived
    page.wait_for_timeout(300)
    told = Axe().run(page).response
    assert len(told["passes"]) > 20
    return [(where, rule["id"], place["target"], rule["help"]) for rule in told["violations"] if rule["impact"] in ("serious", "critical")
            for place in rule["nodes"]]


def test_no_tab_hinders_anybody(visit):  # noqa: F811
    tab = visit()
    found = findings(tab.page, "empty")
    tab.small(steps=2)
    tab.prompt.fill("a cat and a pizza")
    tab.methods("tome")
    tab.page.locator("#run").click()
    assert tab.wait("finished", "failed") == "finished", tab.words
    for name, button in (("Pictures", None), ("Learn", None), ("Inside", "#look"), ("Why?", "#find"), ("Sweep", None), ("History", None)):
        tab.page.get_by_role("tab", name=name).click()
        if button:
            tab.page.locator(button).click()
            tab.wait("running")
            assert tab.wait("finished", "failed") == "finished", tab.words
        for theme in ("light", "dark"):
            tab.page.evaluate("dark => document.body.classList.toggle('dark', dark)", theme == "dark")
            found += findings(tab.page, f"{name}, {theme}")
    assert not found
