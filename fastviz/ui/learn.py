"""What the tab Learn shows, as plain values: a lesson with its texts, what was measured beforehand, and what is measured here."""

from ..lessons import BY_KEY, LESSONS, shipped
from ..lessons.figures import answer, figures
from ..lessons.words import LANGUAGES, read
from ..request import BadRequest
from ..store import told_row

SHOWN = ("state", "error", "steps", "seconds", "spread", "speedup", "flops", "flops_share", "parts", "lpips_name", "picture")


def languages(first=""):
    """The names of the languages, the page's fixed texts in each, and the one for who has chosen none, "" for the browser's."""
    return {"first": first, "names": {each: read(each)["name"] for each in LANGUAGES}, "page": {each: read(each)["page"] for each in LANGUAGES}}


def asked(wish):
    """(Lesson, language) that the page asks for. BadRequest when there is none of that name."""
    wish = wish if isinstance(wish, dict) else {}
    lesson, language = wish.get("lesson"), wish.get("language")
    if not isinstance(lesson, str) or lesson not in BY_KEY or language not in LANGUAGES:
        raise BadRequest("lesson", "This lesson does not exist: choose one of the list.")
    return BY_KEY[lesson], language


def board(lesson, language):
    """A lesson with everything that is there before it is run, in one language."""
    words = read(language)
    return {"lesson": lesson.key, "language": language,
            "list": [{"key": each.key, "title": words["lessons"][each.key]["title"]} for each in LESSONS],
            "ui": words["ui"], "words": words["lessons"][lesson.key], "options": list(lesson.options), "chart": lesson.chart,
            "papers": [{"title": title, "number": number} for title, number in lesson.papers],
            "asked": {"prompt": lesson.request().prompt, "seed": lesson.request().seed}, "result": beforehand(lesson)}


def beforehand(lesson):
    """The shipped result, or None. stale: it was made with other weights, so that it does not show what runs here."""
    told = shipped.read(lesson)
    if told is None:
        return None
    rows, closing = told["rows"], told["closing"]
    shown = [row_shown(name, row | {"state": "done", "picture": shipped.picture(row["picture"])}) for name, row in rows.items()]
    items = [item | {"picture": shipped.picture(item["picture"])} for item in closing.get("items", ())]
    return {"live": False, "stale": shipped.stale(lesson, told), "measured": told["measured"], "environment": told["environment"],
            "repeats": told["recipe"]["repeats"], "rows": shown, "figures": figures(rows), "answer": answer(lesson, rows),
            "closing": closing | {"items": items}}


def here(lesson, job):
    """A lesson's run on this machine as far as it is: what takes the place of the shipped result."""
    names = lesson.names[:len(job.views)]
    told = {name: told_row(job.rows[i]) for i, name in enumerate(names) if i in job.rows}
    shown = [row_shown(name, told.get(name, {}) | {key: view.get(key) for key in ("state", "picture")})
             for name, view in zip(names, job.views)]
    return {"lesson": lesson.key, "live": True, "stale": False, "measured": job.environment.get("measured", job.measured),
            "environment": job.environment, "repeats": job.request.repeats, "rows": shown, "figures": figures(told),
            "answer": answer(lesson, told)}


def row_shown(name, row):
    """What the page draws of a row."""
    metrics = row.get("metrics") or {}
    lpips = metrics.get("lpips")
    return {"name": name, "lpips": lpips if isinstance(lpips, float) else None, **{key: row.get(key) for key in SHOWN}}
