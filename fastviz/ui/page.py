"""The page: the controls on one side, what came of them on the other, and what happens when."""

import json
import logging
import time
from contextlib import ExitStack

import gradio as gr

from .. import store
from ..models import MODELS, prompt_cut, unknown_words
from ..request import PROMPT_LENGTH, BadRequest, Request
from . import health
from .ask import CHOSEN, OWN, Ask
from .inside import Inside
from .job import GONE, LOST, Job
from .turns import Turns

log = logging.getLogger(__name__)
EXAMPLES = ("a big lemon in the ocean", "an owl at night", "a panda under the sea", "a cactus and a donut in a meadow")
PRIVATE = dict(api_visibility="private", show_progress="hidden")
WAIT = 0.5  # seconds between two looks at whose turn it is
REMEMBERED = 64  # visitors whose last comparison is kept for a look inside; whoever never leaves is forgotten
FREE = gr.Button(interactive=True), gr.Button(interactive=False)  # Run and Stop
BUSY = gr.Button(interactive=False), gr.Button(interactive=True)
IDLE = {"state": "idle", "sentence": "", "share": None, "left": "", "row": None}
DRAW = "const draw = () => fastviz.%s(element, props.value, trigger, props); watch('value', draw); draw();"


def view(name, value=None, **options):
    """A place that one of the scripts in web/ fills, from plain values."""
    return gr.HTML(value, html_template=f"<div class='{name}'></div>", js_on_load=DRAW % name, apply_default_css=False,
                   elem_id=name, **options)


class Page:
    """One page's parts, jobs and handlers. jobs: the last comparison of every open tab, by its session; looks: the look
    inside that comparison, where there was one."""

    def __init__(self, profile):
        self.profile, self.ask, self.jobs, self.looks = profile, Ask(profile), {}, {}
        self.turns, self.known = Turns(profile.per_visitor) if profile.per_visitor else None, {}
        self.pipeline = dict(concurrency_id="pipeline", concurrency_limit=profile.queue if self.turns else 1)
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
        with gr.Row(elem_id="after"):
            self.download = gr.DownloadButton("Download all (zip)", interactive=False, elem_id="download", size="sm")
            self.link = gr.Button("Copy link", elem_id="link", size="sm")
            self.drop = view("drop", None)
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Pictures", id="pictures"):
                self.board = view("board", None)
            with gr.Tab("Inside", id="inside"):
                self.inside = view("inside", None)
                self.look = gr.Button("Look inside", elem_id="look", interactive=False)
                self.wanted, self.overlay = view("wanted", None), view("overlay", None)
                with gr.Row(elem_id="records"):
                    self.animate = gr.Button("Make an animation", elem_id="animate", size="sm")
                    self.records = gr.Files(label="Records and animations to download", interactive=False, elem_id="files")

    # What happens

    def wire(self):
        controls, start = list(self.ask.controls.values()), [self.run.click, self.ask.controls["prompt"].submit]
        shown = [self.status, self.board, self.run, self.stop, self.download, self.inside, self.look]
        options = dict(inputs=controls, outputs=shown, preprocess=False, show_progress="minimal",
                       show_progress_on=self.status, api_visibility="private", **self.pipeline)
        gr.on(start, fn=None, js="() => fastviz.begin()", outputs=[self.status, self.stop], **PRIVATE)
        self.look.click(fn=None, js="() => fastviz.begin()", outputs=[self.status, self.stop], **PRIVATE)
        picked = self.examples.click(
            lambda sample: (sample[0], {**IDLE, "state": "waiting"}, gr.Button(interactive=True)),
            self.examples, [self.ask.controls["prompt"], self.status, self.stop], queue=False, **PRIVATE)
        runs = [gr.on(start, self.compare, api_name="run", **options),
                picked.then(self.compare, api_name="run_example", **options)]
        looks = self.look.click(self.look_inside, None, [*shown, self.records], show_progress="minimal", show_progress_on=self.status,
                                api_visibility="private", **self.pipeline)
        self.wanted.submit(self.overlays, self.wanted, self.overlay, preprocess=False, concurrency_limit=1,
                           trigger_mode="always_last", **PRIVATE)
        self.animate.click(self.animation, self.wanted, self.records, preprocess=False, **PRIVATE, **self.pipeline)
        for event in (*runs, looks):
            event.failure(fn=None, js="() => fastviz.refused()", outputs=[self.status, self.run, self.stop], **PRIVATE)
        self.stop.click(fn=None, js="() => fastviz.stop()", **PRIVATE)
        self.stop.click(self.stopped, None, [*shown, self.records], cancels=[*runs, looks], queue=False, **PRIVATE)
        self.dice.click(fn=None, js="() => Math.floor(Math.random() * 2 ** 32)", outputs=self.ask.controls["seed"], **PRIVATE)
        self.link.click(fn=None, js="() => fastviz.copy_link()", **PRIVATE)
        spoken = [self.ask.controls[name] for name in ("model", "prompt")]
        self.ask.controls["model"].input(self.ask.own, spoken[0], [self.ask.controls[name] for name in (*OWN, *(m.KEY for m in CHOSEN))],
                                         queue=False, **PRIVATE)
        for control in spoken:
            control.change(self.notices, spoken, self.notice, queue=False, trigger_mode="always_last", **PRIVATE)
        self.drop.submit(self.from_recipe, self.drop, [self.status, *controls], queue=False, preprocess=False,
                         **PRIVATE)
        self.blocks.load(self.from_link, None, [self.status, *controls], queue=False, **PRIVATE)
        self.blocks.unload(self.leave)
        gr.api(self.api, api_name="compare", **self.pipeline)

    def compare(self, request: gr.Request, *values):
        """Runs what the controls ask for and shows it as it goes."""
        try:
            wanted = self.ask.request(values)
            able()
        except BadRequest as refusal:
            yield refused(refusal), *[gr.skip()] * 6
            return
        with ExitStack() as turn:
            try:
                for ahead in self.turn(turn, visitor(request)):
                    yield waiting(ahead), gr.skip(), *BUSY, *[gr.skip()] * 3
            except BadRequest as refusal:
                yield refused(refusal), *[gr.skip()] * 6
                return
            job = self.keep(request.session_hash, self.job(wanted))
            try:
                rest = *BUSY, gr.skip(), None, gr.Button(interactive=False)
                for fresh in job.changes():  # what is new travels, and only that: all else would slow what is being timed
                    yield job.status(), job.board() if fresh else gr.skip(), *rest
                    rest = [gr.skip()] * 5
                yield self.outcome(job)
                job.told = True
            finally:
                job.end()
                self.remember(job)

    def turn(self, exits, visitor):
        """Yields how many turns come first, until it is this visitor's; `exits` gives it up. BadRequest when the visitor
        has enough waiting. Where the profile has no turns the queue alone decides."""
        if self.turns:
            ticket = exits.enter_context(self.turns.held(visitor))
            while ahead := self.turns.place(visitor, ticket):
                yield ahead
                time.sleep(WAIT)

    def job(self, wanted):
        """A comparison to be run, or one that was: the same request is not computed twice where the profile says so."""
        known = self.known.get(wanted)
        return known.again() if known else Job(wanted, self.profile.log_prompts)

    def remember(self, job):
        if job.state == "finished" and job.request not in self.known and not any(row.error for row in job.rows.values()):
            self.known[job.request] = job
        while len(self.known) > self.profile.remembered:
            self.known.pop(next(iter(self.known)))

    def keep(self, visitor, job):
        """Keeps a visitor's last comparison, and forgets the oldest ones that are over."""
        self.jobs.pop(visitor, None)
        self.looks.pop(visitor, None)
        over = [each for each, work in self.jobs.items() if work.state != "running"]
        for old in over[:max(0, len(self.jobs) + 1 - REMEMBERED)]:
            self.jobs.pop(old, None)
            self.looks.pop(old, None)
        self.jobs[visitor] = job
        return job

    def outcome(self, job):
        """Everything at its end: finished, stopped or failed."""
        path, fault = job.pack()
        status = job.status()
        status["sentence"] = f"{status['sentence']} {fault}".strip()
        seen = any(row.image is not None for row in job.rows.values())
        return (status, job.board(), *FREE, gr.DownloadButton(value=path, interactive=path is not None), gr.skip(),
                gr.Button(interactive=seen))

    def look_inside(self, request: gr.Request):
        """Runs the rows of the last comparison once more, recording, and shows what was recorded as it comes."""
        job = self.jobs.get(request.session_hash)
        if job is None or job.state == "running" or LOST.is_set():
            yield {**IDLE, "state": "failed", "sentence": GONE if LOST.is_set() else "Run a comparison first."}, gr.skip(), *FREE, *[gr.skip()] * 4
            return
        self.looks[request.session_hash] = look = Inside(job, self.profile.records_megabytes)
        try:
            rest, button, files = (*BUSY, gr.skip()), gr.Button(interactive=False), None
            for fresh in look.changes():
                yield look.status(), gr.skip(), *rest, look.board() if fresh else gr.skip(), button, files
                rest, button, files = [gr.skip()] * 3, gr.skip(), gr.skip()
            yield self.looked(look)
            look.told = True
        finally:
            look.end()

    def looked(self, look):
        """Everything at the end of a look inside."""
        return look.status(), gr.skip(), *FREE, gr.skip(), look.board(), gr.Button(interactive=True), look.files()

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
        job, look = self.jobs.get(request.session_hash), self.looks.get(request.session_hash)
        work = job if look is None or look.told else look
        if work is None or work.told:
            return {**IDLE, "sentence": "You left the queue."}, gr.skip(), *FREE, *[gr.skip()] * 4
        work.end()
        work.told = True
        return (*self.outcome(work), gr.skip()) if work is job else self.looked(work)

    def leave(self, request: gr.Request):
        """A closed tab ends its work and takes its pictures with it."""
        for work in (self.jobs.pop(request.session_hash, None), self.looks.pop(request.session_hash, None)):
            if work:
                work.end()

    def notices(self, model, prompt):
        """What the model will not understand, told before the run."""
        if not isinstance(prompt, str) or len(prompt) > PROMPT_LENGTH or model not in self.profile.models or MODELS[model].missing:
            return []
        notes = [MODELS[model].note] * bool(MODELS[model].note)
        notes += [("unknown words: " if len(words) > 1 else "unknown word: ") + ", ".join(words)
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
            request = self.profile.check(read())
            values = dict(zip(self.ask.controls, self.ask.values(request), strict=True))
            values["size"] = self.ask.sizes(MODELS[request.model], request.size)
        except BadRequest as refusal:
            return refused(refusal, "These settings cannot be restored. "), *[gr.skip()] * len(self.ask.controls)
        return {**IDLE, "state": "restored", "sentence": f"{sentence} Press Run."}, *values.values()

    def api(self, prompt: str, seed: int = 0, steps: int | None = None, guidance: float | None = None, size: int | None = None,
            model: str = "stickers", methods: str | None = None, repeats: int = 1) -> dict:
        """Compares the rows named by `methods` and streams them; a refusal is {"state": "refused", "field", "sentence"}."""
        try:
            wanted = self.profile.check(Request(prompt, seed, steps, guidance, size, model, methods, repeats))
            able()
        except BadRequest as refusal:
            yield refused(refusal)
            return
        with ExitStack() as turn:
            try:
                for ahead in self.turn(turn, "api"):  # all programs together are one visitor
                    yield waiting(ahead)
            except BadRequest as refusal:
                yield refused(refusal)
                return
            job = self.job(wanted)
            try:
                for _ in job.changes():
                    yield job.status() | job.board()
                yield job.status() | job.board()
            finally:
                job.end()
                self.remember(job)


def able():
    """BadRequest where no new work can be done."""
    if LOST.is_set():
        raise BadRequest("model", GONE)


def visitor(request):
    """Who asks, for turns: by the name typed at the door, else by address and tab."""
    return request.username or f"{request.client.host} {request.session_hash}"


def waiting(ahead):
    return {**IDLE, "state": "waiting", "sentence": f"Waiting: {ahead} {'comparison is' if ahead == 1 else 'comparisons are'} first."}


def refused(refusal, before=""):
    """What the page is told about a refusal, which is counted and logged."""
    health.REFUSALS.labels(refusal.field).inc()
    log.info("Refused: %s.", refusal.field, extra={"event": "refused", "field": refusal.field})
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
