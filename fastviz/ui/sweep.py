"""Sweeps on the page: the controls, the work, and what the page shows of it."""

import dataclasses
import logging
import os
import tempfile
from pathlib import Path

import gradio as gr

from ..explore import plan as planning
from ..explore.history import thumb
from ..models import MODELS
from ..request import PROMPT_LENGTH, BadRequest, Request
from . import health
from .ask import CHOSEN
from .job import Work

log = logging.getLogger(__name__)
HINT = ("How does a setting change time and pictures? Choose what varies and press Sweep: every value runs on every prompt and "
        "seed, and the full model too, {} pictures at most. What is finished is kept, so a sweep that was stopped goes on where it was.")
VARIED = 3  # settings that can vary at once
SEARCH = 200  # pictures that a search for the fastest way takes, about
SHOWS = 20  # times that the page is drawn anew during a sweep: drawing takes time from what is being timed


def knobs():
    """[(label, variable)] of all that can vary."""
    found = [(f"{method.TITLE}: {field.name.replace('_', ' ')}", f"{method.KEY}.{field.name}")
             for method in CHOSEN for field in dataclasses.fields(method.Knobs)]
    return found + [(f"All rows: {name}", name) for name in planning.GENERAL]


class Controls:
    """What a sweep asks beside the page's own prompt, steps, guidance, size and model, in the bounds of a profile."""

    def __init__(self, profile):
        self.profile, self.all = profile, []
        gr.HTML(f"<p class='note'>{HINT.format(profile.sweep_cells)}</p>", apply_default_css=False)
        with gr.Column(elem_id="ask-vary"):
            self.varied()
        with gr.Row(elem_classes="vary"):
            self.add(gr.Textbox("", label="Prompts", lines=2, max_lines=6, placeholder="one a line; empty: the page's own", elem_id="ask-prompts"))
            self.add(gr.Textbox("0-2", label="Seeds", max_lines=1, placeholder="0-3 or 1,5,9", elem_id="ask-seeds"))
        self.add(gr.Textbox("", label="Rows", max_lines=1, placeholder="empty takes one for each method that varies", elem_id="ask-sweep-rows",
                            info="As on the command line, such as tome, tome+attention_reuse."))

    def varied(self):
        for i, (name, values) in enumerate([("tome.ratio", "0.2, 0.4, 0.6"), (None, ""), (None, "")][:VARIED]):
            with gr.Row(elem_classes="vary"):
                self.add(gr.Dropdown(knobs(), value=name, label="What varies" if i == 0 else "And", elem_id=f"ask-vary-{i}"))
                self.add(gr.Textbox(values, label="Values", max_lines=1, placeholder="0.2, 0.4 or 0.1:0.9:0.2", elem_id=f"ask-values-{i}"))

    def add(self, component):
        self.all.append(component)

    def plan(self, values, told):
        """The checked Plan. values: of these controls; told: of the page's own, by name."""
        *varied, prompts, seeds, rows = values
        vary = []
        for name, text in zip(varied[::2], varied[1::2]):
            if name and not (isinstance(name, str) and isinstance(text, str) and len(text) <= 1000):
                raise BadRequest("vary", "Choose what varies, and write its values as text.")
            vary += [f"{name}={text}"] if name else []
        if not all(isinstance(text, str) and len(text) <= 60 * PROMPT_LENGTH for text in (prompts, seeds, rows)):
            raise BadRequest("vary", "Prompts, seeds and rows must be text.")
        lines, settings = self.shared(told, prompts)
        lines = lines or [told["prompt"]]
        try:
            plan = planning.read_plan(lines, seeds, rows, vary, self.profile.sweep_cells, **settings)
            for variant in plan.variants:
                self.profile.check(variant.request(plan, *plan.units[0]))
        except BadRequest as refusal:
            raise BadRequest(refusal.field.replace("methods", "vary"), str(refusal)) from None
        return plan

    def shared(self, told, prompts):
        """(the prompts of the field, settings by name) of all work that begins here."""
        if told.get("sketch") or told.get("start"):
            raise BadRequest("vary", "A sweep follows no sketch and starts from no picture: clear both first.")
        return [line for line in prompts.splitlines() if line.strip()], {name: told[name] for name in ("model", *planning.GENERAL)}

    def search(self, name, most, values, told):
        """(bound, settings, prompts, methods) as `Finding` takes them, checked."""
        if name not in ("lpips", "seconds"):
            raise BadRequest("vary", "Choose a bound: on LPIPS or on seconds.")
        most, text = planning.check_number("vary", "The bound", most, 0.001, 10_000, float), values[-3]
        if not (isinstance(text, str) and len(text) <= 60 * PROMPT_LENGTH):
            raise BadRequest("vary", "Prompts must be text.")
        try:
            lines, settings = self.shared(told, text)
            request = self.profile.check(Request(told["prompt"], methods="full", **settings))
            prompts = [planning.check_prompt(line) for line in dict.fromkeys(lines)]
        except BadRequest as refusal:
            raise BadRequest(refusal.field.replace("methods", "vary"), str(refusal)) from None
        if len(prompts) not in range(4, 9) and (prompts or not MODELS[request.model].closed):
            raise BadRequest("vary", "Write 4 to 8 prompts: half of them propose, the others verify.")
        methods = set(self.profile.methods) & set(MODELS[request.model].methods)
        return {name: most}, {name: getattr(request, name) for name in settings}, prompts, methods


class Sweeping(Work):
    """A sweep under way; what was finished before, in whatever process, is there at once."""

    def __init__(self, plan, history, owner):
        super().__init__("sweep")
        self.said = ""  # what the pictures answer
        self.plan, self.history, self.owner = plan, history, owner
        self.sweep, self.place, self.thumbs, self.counted, self.before = None, (0, 1, 0, 1), {}, set(), 0

    def compute(self):
        from ..explore import sweep as sweeping

        for sweep in sweeping.run(self.plan, self.history, self.owner, self.watch, self.stop.is_set):
            self.take(sweep)

    def take(self, sweep):
        """Takes in what is new, and draws the page anew now and then."""
        begins = sweep is not self.sweep
        if begins:
            self.sweep, self.plan, self.thumbs, self.counted, self.hidden = sweep, sweep.plan, {}, set(), 0
        self.collect()
        self.count(begins)
        self.hidden += 1
        if begins or self.hidden * SHOWS >= len(sweep.keys):
            self.fresh, self.hidden = True, 0
            self.changed.set()
        if not begins:
            self.between()

    def count(self, before):
        """Counts the pictures that are new as timed runs. before: whether they were there when the sweep began."""
        for place, told in self.sweep.cells.items():
            if told and place not in self.counted:
                self.counted.add(place)
                if before:
                    self.before += 1
                elif told["error"]:
                    health.ROWS.labels("failed").inc()
                else:
                    health.took(told["text"], told["denoising"], told["decoder"])

    def facts(self):
        """What was asked, without prompts, and how much of it is done."""
        rows, vary = self.plan.plain()["rows"], {name: list(values) for name, values in self.plan.vary}
        return {"model": self.plan.model, "rows": rows, "vary": vary, "prompts": len(self.plan.prompts), "seeds": len(self.plan.seeds),
                "pictures": len(self.plan.variants) * len(self.plan.units), "finished": len(self.counted), "from_before": self.before}

    def collect(self):
        """Small copies of the pictures that are new."""
        from ..store import picture_at

        for place, told in list(self.sweep.cells.items()):
            if told and place not in self.thumbs and (image := picture_at(self.history.picture_of(self.sweep.keys[place]))):
                self.thumbs[place] = thumb(image)

    def watch(self, done, cells, step, steps):
        self.place, self.sentence = (done, cells, step, steps), f"Picture {done + 1} of {cells}: step {step} of {steps}"
        self.changed.set()

    def status(self):
        """The progress line."""
        told = {"state": self.state, "sentence": self.sentence, "share": None, "left": "", "row": None, "step": None}
        done, cells, step, steps = self.place
        if self.state == "running":
            return told | {"share": (done + step / steps) / cells}
        if self.before and self.state == "finished":
            told["sentence"] += f" {self.before} of {len(self.sweep.keys)} pictures were there from before, with the times of then."
        if self.sweep and (bad := sum(bool(cell and cell["error"]) for cell in self.sweep.cells.values())):
            told["sentence"] += f" {bad} pictures could not be made: their places say why."
        return told | ({"sentence": "Stopped. What was finished is kept: the same sweep goes on from there."} if self.state == "stopped" else {})

    def board(self):
        """Everything to draw the grid, the curves and the front from, whichever axes are chosen."""
        from ..explore import sweep as sweeping

        if self.sweep is None:
            return None
        rows, units = sweeping.figures(self.sweep), range(len(self.plan.units))
        return {"sweep": self.sweep.id, "state": self.state, "said": self.said, "variables": sweeping.variables(self.plan), "device": self.sweep.environment,
                "units": [{"prompt": prompt, "seed": str(seed)} for prompt, seed in self.plan.units],
                "variants": [{"at": row["at"], "figures": row["figures"], "front": row["front"], "cells": [self.shown(v, u) for u in units]}
                             for v, row in enumerate(rows)]}

    def shown(self, v, u):
        told = self.sweep.cells.get((v, u)) or {}
        return {"thumb": self.thumbs.get((v, u)), **{name: told.get(name) for name in ("seconds", "lpips", "error")}}

    def files(self):
        """(paths of the tables to take away or None, what went wrong or "")."""
        from ..explore import sweep as sweeping

        if self.sweep is None:
            return None, ""
        try:
            folder, tables = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"])), sweeping.tables(self.sweep)
            for name, table in tables.items():
                (folder / name).write_bytes(table)
            return [str(folder / name) for name in tables], ""
        except OSError:  # the pictures on the page must outlive whatever goes wrong with their table
            log.exception("The table of a sweep could not be written.")
            return None, "There is no table to download: the server's log says why."


class Finding(Sweeping):
    """The search for the fastest way under a bound: the sweep that proposes is shown, then the one that verifies.

    bound: {"lpips": the largest} or {"seconds": the most}; told: the page's own settings by name; prompts: four or more, or
    none for the embedded model's."""

    def __init__(self, bound, told, prompts, methods, history, owner):
        super().__init__(None, history, owner)
        self.bound, self.methods = bound, methods
        self.told = told | ({"prompts": prompts} if prompts else {})

    def compute(self):
        from ..explore import fastest

        answer, *_ = fastest.search(self.history, self.owner, **self.bound, **self.told, seeds=1, methods=self.methods,
                                    on_progress=self.watch, on_sweep=self.take, stop=self.stop.is_set)
        self.said, self.fresh = answer.said, True

    def watch(self, what, done, cells, step, steps):
        super().watch(done, cells, step, steps)
        self.sentence = f"{what.capitalize()}: {self.sentence[0].lower()}{self.sentence[1:]}"

    def facts(self):
        return {"bound": self.bound, **(super().facts() if self.plan else {})}

    def status(self):
        told = super().status()
        return told | ({"sentence": self.said} if self.said and self.state == "finished" else {})
