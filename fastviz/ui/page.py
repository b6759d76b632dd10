"""The page: the controls on one side, what came of them on the other, and what happens when."""

import json
import logging
import os
import tempfile
from pathlib import Path

import gradio as gr

from .. import store
from ..explore.history import History, home
from ..models import MODELS, prompt_cut, unknown_words
from ..request import PROMPT_LENGTH, BadRequest, Request
from .ask import CHOSEN, Ask
from .inside import Inside
from .job import GONE, LOST, Job
from .report import html
from .shelf import Shelf
from .sweep import Controls, Sweeping
from .why import Why

log = logging.getLogger(__name__)
EXAMPLES = ("a big lemon in the ocean", "an owl at night", "a panda under the sea", "a cactus and a donut in a meadow")
PRIVATE = dict(api_visibility="private", show_progress="hidden")
PIPELINE = dict(concurrency_id="pipeline", concurrency_limit=1)
ON, OFF = gr.Button(interactive=True), gr.Button(interactive=False)
OFF_REPORT = gr.DownloadButton(value=None, interactive=False)
FREE, BUSY = (ON, OFF), (OFF, ON)  # Run and Stop
IDLE = {"state": "idle", "sentence": "", "share": None, "left": "", "row": None}
DRAW = "const draw = () => fastviz.%s(element, props.value, trigger, props); watch('value', draw); draw();"


def view(name, value=None, **options):
    """A place that one of the scripts in web/ fills, from plain values."""
    return gr.HTML(value, html_template=f"<div class='{name}'></div>", js_on_load=DRAW % name, apply_default_css=False,
                   elem_id=name, **options)


class Page:
    """One page's parts, jobs and handlers. By the session of every open tab, jobs: its last comparison; looks: the look
    inside it, where there was one; works: what was begun last. ends: kind of work -> what it leaves on the page."""

    def __init__(self, profile):
        self.profile, self.ask, self.jobs, self.looks, self.works = profile, Ask(profile), {}, {}, {}
        self.ends = {Job: self.outcome, Inside: self.looked, Why: self.found, Sweeping: self.measured}
        self.sweeps = profile.sweep_cells if profile.history_megabytes else 0  # what is finished must be kept somewhere
        self.shelf = Shelf(History(home(), profile.history_megabytes), profile.history_shared) if profile.history_megabytes else None
        with gr.Blocks(title="fastviz", analytics_enabled=False, fill_width=True) as self.blocks:
            self.header()
            with gr.Row(elem_id="page", equal_height=False):
                with gr.Column(elem_id="ask"):
                    self.asking()
                    self.ask.show(Request(**profile.example))
                with gr.Column(elem_id="answer"):
                    self.answering()
            self.wire()

    # What there is

    def header(self):
        gr.HTML("<h1>fastviz</h1><p>One prompt, one seed, the same starting noise: through the full model, and through ways "
                "to make it fast. See what each one saves, and what it changes.</p>", elem_id="top", apply_default_css=False)

    def asking(self):
        self.ask.add("prompt", gr.Textbox(label="Prompt", placeholder=EXAMPLES[0], lines=2, max_lines=5,
                                          max_length=PROMPT_LENGTH, elem_id="ask-prompt", submit_btn=False))
        self.notice = view("notice", [])
        with gr.Row(elem_id="go"):
            self.run = gr.Button("Run", variant="primary", elem_id="run", min_width=120)
            self.stop = gr.Button("Stop", variant="secondary", elem_id="stop", min_width=90, interactive=False)
        self.examples = gr.Dataset(components=[self.ask.controls["prompt"]], samples=[[text] for text in EXAMPLES],
                                   label="Examples: one click runs", elem_id="examples", type="values")
        with gr.Group(elem_classes="card-group"):
            self.dice = self.ask.general()
        with gr.Column(elem_id="ask-methods"):
            gr.HTML("<h2>Ways to be fast</h2><p>The full model always runs first.</p>", apply_default_css=False, elem_classes="head")
            for method in CHOSEN:
                self.ask.method(method)
        with gr.Accordion("More rows and picture size", open=False, elem_id="ask-rows"):
            self.ask.rows()

    def answering(self):
        self.status = view("status", IDLE)
        if self.shelf:
            self.wish, self.token = view("wish", None), view("token", None)
        with gr.Row(elem_id="after"):
            self.download = gr.DownloadButton("Download all (zip)", interactive=False, elem_id="download", size="sm")
            self.report = gr.DownloadButton("Report (one HTML file)", interactive=False, elem_id="report", size="sm")
            self.link = gr.Button("Copy link", elem_id="link", size="sm")
            self.drop = view("drop", None)
        with gr.Tabs(elem_id="tabs") as self.tabs:
            with gr.Tab("Pictures", id="pictures"):
                self.board = view("board", None)
            with gr.Tab("Inside", id="inside"):
                self.inside = view("inside", None)
                self.look = gr.Button("Look inside", elem_id="look", interactive=False)
                self.wanted, self.overlay = view("wanted", None), view("overlay", None)
                with gr.Row(elem_id="records"):
                    self.animate = gr.Button("Make an animation", elem_id="animate", size="sm")
                    self.records = gr.Files(label="Records and animations to download", interactive=False, elem_id="files")
            with gr.Tab("Why?", id="reasons"):
                self.why = view("why", None)
                self.find = gr.Button("Find out why", elem_id="find", interactive=False)
            if self.sweeps:
                with gr.Tab("Sweep", id="sweeps"):
                    self.vary = Controls()
                    self.begin = gr.Button("Sweep", elem_id="begin")
                    self.swept = view("sweep", None)
                    self.tables = gr.Files(label="Tables to download", interactive=False, elem_id="tables")
            if self.shelf:
                with gr.Tab("History", id="history"):
                    self.history = view("history", None)

    # What happens

    def wire(self):
        controls, start = list(self.ask.controls.values()), [self.run.click, self.ask.controls["prompt"].submit]
        shown = [self.status, self.board, self.run, self.stop, self.download, self.inside, self.look, self.why, self.find]
        shown += [self.report]
        shown += [self.history] if self.shelf else []
        shown += [self.swept, self.tables, self.begin] if self.sweeps else []
        options = dict(inputs=controls, outputs=shown, preprocess=False, show_progress="minimal",
                       show_progress_on=self.status, api_visibility="private", **PIPELINE)
        gr.on(start, fn=None, js="() => fastviz.begin()", outputs=[self.status, self.stop], **PRIVATE)
        gr.on([self.look.click, self.find.click], fn=None, js="() => fastviz.begin()", outputs=[self.status, self.stop], **PRIVATE)
        picked = self.examples.click(
            lambda sample: (sample[0], {**IDLE, "state": "waiting"}, gr.Button(interactive=True)),
            self.examples, [self.ask.controls["prompt"], self.status, self.stop], queue=False, **PRIVATE)
        runs = [gr.on(start, self.compare, api_name="run", **options),
                picked.then(self.compare, api_name="run_example", **options)]
        after = dict(inputs=None, outputs=[*shown, self.records], show_progress="minimal", show_progress_on=self.status,
                     api_visibility="private", **PIPELINE)
        runs += [self.look.click(self.look_inside, **after), self.find.click(self.find_out, **after)]
        self.wanted.submit(self.overlays, self.wanted, self.overlay, preprocess=False, concurrency_limit=1,
                           trigger_mode="always_last", **PRIVATE)
        self.animate.click(self.animation, self.wanted, self.records, preprocess=False, **PRIVATE, **PIPELINE)
        if self.sweeps:
            self.begin.click(fn=None, js="() => fastviz.begin()", outputs=[self.status, self.stop], **PRIVATE)
            runs.append(self.begin.click(self.sweep, **after | {"inputs": [*self.vary.all, *controls], "preprocess": False}))
        for event in runs:
            event.failure(fn=None, js="() => fastviz.refused()", outputs=[self.status, self.run, self.stop], **PRIVATE)
        self.stop.click(fn=None, js="() => fastviz.stop()", **PRIVATE)
        self.stop.click(self.stopped, None, [*shown, self.records], cancels=runs, queue=False, **PRIVATE)
        self.dice.click(fn=None, js="() => Math.floor(Math.random() * 2 ** 32)", outputs=self.ask.controls["seed"], **PRIVATE)
        self.link.click(fn=None, js="() => fastviz.copy_link()", **PRIVATE)
        spoken = [self.ask.controls[name] for name in ("model", "prompt")]
        for control in spoken:
            control.change(self.notices, spoken, self.notice, queue=False, trigger_mode="always_last", **PRIVATE)
        self.drop.submit(self.from_recipe, self.drop, [self.status, *controls], queue=False, preprocess=False,
                         **PRIVATE)
        self.blocks.load(self.from_link, None, [self.status, *controls], queue=False, **PRIVATE)
        self.blocks.unload(self.leave)
        if self.shelf:
            self.blocks.load(self.arrive, self.token, self.history, js="() => fastviz.visitor()", preprocess=False, queue=False, **PRIVATE)
            self.wish.submit(self.recall, self.wish, [*shown, self.tabs, *controls], preprocess=False, queue=False,
                             trigger_mode="always_last", **PRIVATE)
        gr.api(self.api, api_name="compare", **PIPELINE)

    def compare(self, request: gr.Request, *values):
        """Runs what the controls ask for and shows it as it goes."""
        try:
            wanted = self.ask.request(values)
            able()
        except BadRequest as refusal:
            yield {self.status: refused(refusal)}
            return
        self.jobs[request.session_hash] = job = Job(wanted)
        self.looks.pop(request.session_hash, None)
        yield from self.follow(request, job, self.board, {self.inside: None, self.why: None, self.look: OFF, self.find: OFF})

    def follow(self, request, work, place, first):
        """Does a piece of work and shows it as it goes, its board in `place`. first: what changes when it begins."""
        self.works[request.session_hash] = work
        first = first | {self.run: BUSY[0], self.stop: BUSY[1]}
        try:
            for fresh in work.changes():  # what is new travels, and only that: all else would slow what is being timed
                yield {self.status: work.status()} | ({place: work.board()} if fresh else {}) | first
                first = {}
            yield self.ended(work, request)
            work.told = True
        finally:
            work.end()

    def ended(self, work, request):
        """Everything at the end of a piece of work: finished, stopped or failed."""
        found = {self.run: FREE[0], self.stop: FREE[1]} | self.ends[type(work)](work)
        if isinstance(work, Job) and self.shelf and work.files:
            found |= self.kept(work, request.session_hash, found[self.status])
        return found | ({self.history: self.shelf.listed(request.session_hash)} if isinstance(work, Sweeping) else {})

    def kept(self, job, session, status):
        """The history after a comparison was added to it, which must not fail with it."""
        try:
            self.shelf.keep(session, job)
            return {self.history: self.shelf.listed(session)}
        except Exception:
            log.exception("A run could not be kept.")
            return {self.status: status | {"sentence": f"{status['sentence']} It is not in the history: the server's log says why."}}

    def outcome(self, job):
        """What a comparison leaves."""
        path, fault = job.pack()
        status = job.status()
        status["sentence"] = f"{status['sentence']} {fault}".strip()
        seen = gr.Button(interactive=any(row.image is not None for row in job.rows.values()))
        return {self.status: status, self.board: job.board(), self.look: seen, self.find: seen,
                self.download: gr.DownloadButton(value=path, interactive=path is not None), self.report: self.reported(job)}

    def reported(self, job, look=None):
        """The report of a comparison, as its button."""
        try:
            path = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"]), f"fastviz-seed-{job.request.seed}.html")
            path.write_text(html(job, look))
            return gr.DownloadButton(value=str(path), interactive=True)
        except Exception:  # a full disk must not take the pictures with it
            log.exception("The report could not be written.")
            return OFF_REPORT

    def further(self, request):
        """The comparison that something more is asked about, or None and what to say instead."""
        job = self.jobs.get(request.session_hash)
        if job is None or job.state == "running" or LOST.is_set():
            return None, {self.status: {**IDLE, "state": "failed", "sentence": GONE if LOST.is_set() else "Run a comparison first."},
                          self.run: FREE[0], self.stop: FREE[1]}
        return job, {}

    def look_inside(self, request: gr.Request):
        """Runs the rows of the last comparison once more, recording, and shows what was recorded as it comes."""
        job, instead = self.further(request)
        if job is None:
            yield instead
            return
        self.looks[request.session_hash] = look = Inside(job)
        yield from self.follow(request, look, self.inside, {self.look: OFF, self.records: None})

    def looked(self, look):
        """What a look inside leaves."""
        return {self.status: look.status(), self.inside: look.board(), self.look: ON, self.records: look.files(),
                self.report: self.reported(look.job, look) if look.traces else gr.skip()}

    def find_out(self, request: gr.Request):
        """Runs the rows of the last comparison once more with a profiler and shows where their time goes."""
        job, instead = self.further(request)
        if job is None:
            yield instead
            return
        yield from self.follow(request, Why(job), self.why, {self.find: OFF})

    def found(self, why):
        """What a search for reasons leaves."""
        return {self.status: why.status(), self.why: why.board(), self.find: ON}

    def sweep(self, request: gr.Request, *values):
        """Runs what the sweep's controls ask for, with the page's own prompt and settings, as far as it is not kept."""
        own, others = values[:len(self.vary.all)], values[len(self.vary.all):]
        try:
            plan = Controls.plan(own, dict(zip(self.ask.controls, others, strict=True)), self.profile)
            able()
        except BadRequest as refusal:
            yield {self.status: refused(refusal), self.run: FREE[0], self.stop: FREE[1]}
            return
        owner = self.shelf.owners.get(request.session_hash, request.session_hash)
        yield from self.follow(request, Sweeping(plan, self.shelf.history, owner), self.swept, {self.begin: OFF, self.tables: None})

    def measured(self, work):
        """What a sweep leaves."""
        return {self.status: work.status(), self.swept: work.board(), self.begin: ON, self.tables: work.files()}

    def overlays(self, wanted, request: gr.Request):
        """What is laid over the pictures for the block, word or point that was chosen."""
        look = self.looks.get(request.session_hash)
        try:
            return look.overlay(wanted) if look and look.state != "running" else gr.skip()
        except BadRequest as refusal:
            return {"key": wanted.get("key") if isinstance(wanted, dict) else None, "sentence": str(refusal), "rows": {}}

    def animation(self, wanted, request: gr.Request):
        """The overlays that are shown, over all steps, as an animated picture beside the records."""
        look = self.looks.get(request.session_hash)
        if look is None or look.state == "running":
            return gr.skip()
        try:
            return [*look.files(), *map(str, look.animations(wanted))]
        except BadRequest as refusal:
            gr.Warning(str(refusal))
            return gr.skip()

    def stopped(self, request: gr.Request):
        """After a press on Stop: the work is ended, what is finished stays; or the place in the queue is given up."""
        work = self.works.get(request.session_hash)
        if work is None or work.told:
            return {self.status: {**IDLE, "sentence": "You left the queue."}, self.run: FREE[0], self.stop: FREE[1]}
        work.end()
        work.told = True
        return self.ended(work, request)

    def leave(self, request: gr.Request):
        """A closed tab ends its work and takes its pictures with it."""
        if work := self.works.pop(request.session_hash, None):
            work.end()
        for kept in (self.jobs, self.looks, self.shelf.owners if self.shelf else {}):
            kept.pop(request.session_hash, None)

    def arrive(self, token, request: gr.Request):
        """A visitor makes himself known, and sees his runs."""
        return self.shelf.arrive(request.session_hash, token)

    def recall(self, wish, request: gr.Request):
        """What a visitor wishes of the history: search, open, delete, lay two side by side."""
        session = request.session_hash
        wish = wish if isinstance(wish, dict) else {}
        try:
            return self.opened(session, wish) if wish.get("do") == "open" else {self.history: self.shelf.granted(session, wish)}
        except BadRequest as refusal:
            return {self.history: self.shelf.listed(session, wish.get("text", ""), sentence=str(refusal))}

    def opened(self, session, wish):
        """A kept comparison on the page again: pictures, numbers and controls."""
        if (work := self.works.get(session)) and work.state == "running":
            raise BadRequest("history", "Something is running: wait for its end, or stop it first.")
        job = self.shelf.opened(session, wish)
        status = {**IDLE, "state": "restored", "sentence": "Opened from the history."}
        if isinstance(job, Sweeping):
            if not self.sweeps:
                raise BadRequest("history", "This page offers no sweeps.")
            return {self.status: status, self.swept: job.board(), self.tables: job.files(), self.tabs: gr.Tabs(selected="sweeps")}
        self.jobs[session] = job
        self.looks.pop(session, None)
        controls = dict(zip(self.ask.controls.values(), self.ask.values(job.request), strict=True))
        return controls | {
            self.status: status, self.board: job.board(), self.run: ON,
            self.inside: None, self.why: None, self.look: ON, self.find: ON, self.tabs: gr.Tabs(selected="pictures"),
            self.download: gr.DownloadButton(value=None, interactive=False), self.report: self.reported(job)}

    def notices(self, model, prompt):
        """What the model will not understand, told before the run."""
        if not isinstance(prompt, str) or len(prompt) > PROMPT_LENGTH or model not in MODELS:
            return []
        notes = [("unknown words: " if len(words) > 1 else "unknown word: ") + ", ".join(words)
                 for words in [unknown_words(model, prompt)] if words]
        cut = prompt_cut(model, prompt)
        return notes + ([f"too long for this model: cut before “{cut}”"] if cut else [])

    def from_recipe(self, text):
        """The controls as a picture's recipe tells. Only its text came here, never the picture."""
        return self.restored(lambda: store.read_recipe(parse(text)), "Settings restored from the picture.")

    def from_link(self, request: gr.Request):
        """The controls as the page's address tells; without a prompt in it, they stay as they are."""
        told = {name: value for name, value in dict(request.query_params).items() if not name.startswith("__")}
        if "prompt" in told:
            return self.restored(lambda: store.from_query(told), "Settings restored from the link.")
        return IDLE, *[gr.skip()] * len(self.ask.controls)

    def restored(self, read, sentence):
        try:
            values = self.ask.values(self.profile.check(read()))
        except BadRequest as refusal:
            return refused(refusal, "These settings cannot be restored. "), *[gr.skip()] * len(self.ask.controls)
        return {**IDLE, "state": "restored", "sentence": f"{sentence} Press Run."}, *values

    def api(self, prompt: str, seed: int = 0, steps: int = 50, guidance: float | None = None, size: int | None = None,
            model: str = "stickers", methods: str = "full,few_step,attention_reuse,tome", repeats: int = 1) -> dict:
        """Compares the rows named by `methods` and streams them; a refusal is {"state": "refused", "field", "sentence"}."""
        try:
            wanted = self.profile.check(Request(prompt, seed, steps, guidance, size, model, methods, repeats))
            able()
        except BadRequest as refusal:
            yield refused(refusal)
            return
        job = Job(wanted)
        try:
            for _ in job.changes():
                yield job.status() | job.board()
            yield job.status() | job.board()
        finally:
            job.end()


def able():
    """BadRequest where no new work can be done."""
    if LOST.is_set():
        raise BadRequest("model", GONE)


def refused(refusal, before=""):
    return {**IDLE, "state": "refused", "field": refusal.field, "sentence": f"{before}{refusal}"}


def parse(text):
    """A recipe's JSON text -> dict. BadRequest when it is something else."""
    try:
        told = json.loads(text) if isinstance(text, str) and len(text) <= 20_000 else None
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise BadRequest("recipe", "This picture holds no recipe that can be read.")
    return told
