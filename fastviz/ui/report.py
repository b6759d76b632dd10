"""One comparison as one HTML file, which opens without a server and asks nobody for anything."""

import json
from pathlib import Path

WEB = Path(__file__).parent / "web"
SCRIPTS = ("dom.js", "cards.js", "slider.js", "table.js", "scatter.js", "inside.js", "page.js", "report.js")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"  # no request to anywhere
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}"><title>fastviz: a comparison</title>
<style>{styles}
* {{ box-sizing: border-box; }} body {{ margin: 0 auto; max-width: 1280px; padding: 0 16px 40px; font-family: system-ui, -apple-system, "Segoe UI", sans-serif; color: var(--ink); }}
</style></head><body><header id="top"><h1>fastviz</h1><p id="asked"></p></header><main>
<div id="board"><div class="board"></div></div><section id="inside" hidden><h2>Inside, step by step</h2><div class="inside"></div></section></main>
<script type="application/json" id="told">{told}</script>
<script>
{scripts}
</script></body></html>
"""


def html(job, look=None):
    """The file's text. job: a Job that is done; look: its Inside, for the step scrubber with what each step skipped."""
    told = {"board": job.board() | {"state": "finished"}, "request": job.recipe, "inside": look and inside(look)}
    text = json.dumps(told, allow_nan=False).replace("<", "\\u003c")  # a prompt must not end the element that holds it
    return PAGE.format(policy=POLICY, styles=(WEB / "page.css").read_text(), told=text,
                       scripts="\n".join((WEB / name).read_text() for name in SCRIPTS))


def inside(look):
    """What a look inside recorded, with the overlay of every block; None where nothing was recorded."""
    if not look.traces:
        return None
    rows = [row if row["error"] else row | {"kinds": dict(list(row["kinds"].items())[:1])} for row in look.views]
    board = look.board() | {"state": "finished", "words": [], "rows": rows}  # one kind of overlay of each: a file has its size
    wish = {"key": "", "show": "skipped", "kinds": {}}
    return {"board": board, "overlays": {name: look.overlay(wish | {"block": name})["rows"] for name, _ in look.blocks}}
