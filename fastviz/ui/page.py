"""The page: the controls on one side, what came of them on the other, and what happens when."""

import time
from contextlib import ExitStack

import gradio as gr

from ..models import MODELS
from ..reading import prompt_cut, unknown_words
from ..request import PROMPT_LENGTH, BadRequest, Request
from . import draw, worker
from .api import Api
from .ask import CHOSEN, OWN, Ask
from .inside import Inside
from .job import GONE, LOST, Job, able
from .learn import languages
from .parts import IDLE, OFF, ON, PRIVATE, refused, view, waiting
from .restore import Restore
from .shelf import shelf_of
from .sweep import Finding, Sweeping
from .tabs import history, inside, learn, pictures, sweep, why
from .turns import Turns
from .visits import Visits
from .why import Why

EXAMPLES = ("a big lemon in the ocean", "an owl at night", "a panda under the sea", "a cactus and a donut in a meadow")
WAIT = 0.5  # seconds between two looks at whose turn it is
PASSING = ("Out of memory", "memory that are free", "The device ", "The disk is full", "could not be run")  # in what the machine's state made fail


class Page:
    """One page's parts and handlers. visits: what every open tab did; known: comparisons that are shown again to whoever
    asks the same; turns: whose turn it is, None where the queue alone decides; shelf: what is kept, None where nothing is."""

    def __init__(self, profile):
        self.profile, self.ask, self.visits, self.known, self.api = profile, Ask(profile), Visits(), {}, Api(self)
        self.turns = Turns(profile.per_visitor) if profile.per_visitor else None
        self.pipeline = dict(concurrency_id="pipeline", concurrency_limit=profile.queue if self.turns else 1)
        self.shelf, self.fault = shelf_of(profile)
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
        with gr.Row(elem_id="head"):
            gr.HTML("<h1>fastviz</h1><p>One prompt, one seed, the same starting noise: through the full model, and through ways "
                    "to make it fast. See what each one saves, and what it changes.</p>", elem_id="top", apply_default_css=False)
            view("languages", languages(self.profile.language))

    def asking(self):
        self.ask.add("prompt", gr.Textbox(label="Prompt", placeholder=EXAMPLES[0], lines=2, max_lines=5,
                                          max_length=PROMPT_LENGTH, elem_id="ask-prompt", submit_btn=False))
        self.notice = view("notice", [])
        with gr.Row(elem_id="go"):
            self.run = gr.Button("Run", variant="primary", elem_id="run", min_width=120)
            self.stop = gr.Button("Stop", variant="secondary", elem_id="stop", min_width=90, interactive=False)
            self.away = gr.Button("Stop", elem_id="away")  # never seen: Stop presses it for who still waits
        self.examples = gr.Dataset(components=[self.ask.controls["prompt"]], samples=[[text] for text in EXAMPLES],
                                   label="Examples: one click runs", elem_id="examples", type="values")
        self.draw = draw.Draw(self)
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
        with gr.Tabs(elem_id="tabs") as self.strip:
            self.tabbed()

    def tabbed(self):
        """The tabs that this installation can offer. What runs in a worker cannot be watched by a profiler here, nor swept:
        each picture would ask for a device of its own."""
        here = not worker.LENT
        self.pictures, study = pictures.Tab(self), learn.Tab(self)
        look, reasons = inside.Tab(self), why.Tab(self) if here else None
        self.further = [look.look, reasons.find] if here else [look.look]
        self.sweeps = sweep.Tab(self) if here and self.shelf and self.profile.sweep_cells else None
        self.past = history.Tab(self) if self.shelf or self.fault else None
        self.tabs = [tab for tab in (self.pictures, study, look, reasons, self.sweeps, self.past) if tab]
        self.ends = {Job: self.pictures, Inside: look, Why: reasons, Sweeping: self.sweeps, Finding: self.sweeps}

    # What happens

    def wire(self):
        controls, start = list(self.ask.controls.values()), [self.run.click, self.ask.controls["prompt"].submit]
        shown = [self.status, self.board, self.run, self.stop, self.download]
        shown += [part for tab in self.tabs for part in tab.shown if part is not self.board] + [self.report]
        options = dict(outputs=shown, show_progress="minimal", show_progress_on=self.status, api_visibility="private", **self.pipeline)
        asked = options | dict(inputs=controls, preprocess=False)
        begun = [button.click for button in (*self.further, *(self.sweeps.buttons if self.sweeps else []))]
        gr.on(start + begun, fn=None, js="() => fastviz.begin()", outputs=[self.status, self.stop], **PRIVATE)
        picked = self.examples.click(lambda sample: (sample[0], {**IDLE, "state": "waiting"}, ON), self.examples,
                                     [self.ask.controls["prompt"], self.status, self.stop], queue=False, **PRIVATE)
        runs = [gr.on(start, self.compare, api_name="run", **asked), picked.then(self.compare, api_name="run_example", **asked)]
        runs += [event for tab in self.tabs for event in tab.wire(options)]
        for event in runs:
            event.failure(fn=None, js="() => fastviz.refused()", outputs=[self.status, self.run, self.stop], **PRIVATE)
        # What runs ends by itself. Gradio forgets a run that it cancelled only later, and with it one that began meanwhile.
        self.stop.click(self.end, None, None, js="() => fastviz.stop()", queue=False, **PRIVATE)
        self.away.click(self.stopped, None, shown, cancels=runs, queue=False, **PRIVATE)
        self.wire_controls(controls)
        self.blocks.unload(self.leave)
        for endpoint in (self.api.compare, self.api.measure):
            gr.api(endpoint, api_name=endpoint.__name__, **self.pipeline)

    def wire_controls(self, controls):
        """What changes controls, and what controls change at once."""
        self.dice.click(fn=None, js="() => Math.floor(Math.random() * 2 ** 32)", outputs=self.ask.controls["seed"], **PRIVATE)
        self.link.click(fn=None, js="() => fastviz.copy_link()", **PRIVATE)
        spoken = [self.ask.controls[name] for name in ("model", "prompt")]
        self.ask.controls["model"].input(self.ask.own, spoken[0], [self.ask.controls[name] for name in (*OWN, *(m.KEY for m in CHOSEN))],
                                         queue=False, **PRIVATE)
        for control in spoken:
            control.change(self.notices, spoken, self.notice, queue=False, trigger_mode="always_last", **PRIVATE)
        self.draw.wire(controls)
        restore = Restore(self.profile, self.ask)
        self.drop.submit(restore.from_recipe, self.drop, [self.status, *controls], queue=False, preprocess=False, **PRIVATE)
        self.blocks.load(restore.from_link, None, [self.status, *controls], queue=False, **PRIVATE)

    @property
    def board(self):
        return self.pictures.board

    def compare(self, request: gr.Request, *values):
        """Runs what the controls ask for and shows it as it goes."""
        try:
            wanted = self.ask.request(values)
            able()
        except BadRequest as refusal:
            yield self.turned_away(request, refusal)
            return
        yield from self.follow(request, lambda visit: visit.take(self.job(wanted)), self.board, self.cleared())

    def cleared(self):
        """What the tabs become when another comparison takes the place of the last one."""
        return {part: value for tab in self.tabs for part, value in tab.begun.items()}

    def again(self, request, begin, place, first):
        """The same for something more that is asked about the last comparison. begin(visit, comparison): as of `follow`."""
        job = self.visits.of(request).job
        if job is None or job.state == "running" or LOST.is_set():
            sentence = GONE if LOST.is_set() else "Run a comparison first."
            yield {self.status: {**IDLE, "state": "failed", "sentence": sentence}, self.run: ON, self.stop: OFF}
            return
        yield from self.follow(request, lambda visit: begin(visit, job), place, first)

    def follow(self, request, begin, place, first):
        """Waits for the visitor's turn, does a piece of work and shows it as it goes. begin(visit): makes the work, once it
        is its turn; place: where its board is shown; first: what changes then."""
        with ExitStack() as turn:
            try:
                for ahead in self.turn(turn, visitor(request)):
                    yield {self.status: waiting(ahead, self.turns.each), self.run: OFF, self.stop: ON}
            except BadRequest as refusal:
                yield {self.status: refused(refusal)}
                return
            visit = self.visits.now(request)
            visit.work = work = begin(visit)
            if self.turns:
                work.between = lambda: self.pause(visitor(request), work)
            try:
                first = first | {self.run: OFF, self.stop: ON}
                for fresh in work.changes():  # what is new travels, and only that: all else would slow what is being timed
                    yield {self.status: work.status()} | ({place: work.board()} if fresh else {}) | first
                    first = {}
                yield self.ended(request, work)
                work.told = True
            finally:
                work.end()
                self.remember(work)

    def ended(self, request, work):
        """Everything at the end of a piece of work: finished, stopped or failed."""
        told = {self.run: ON, self.stop: OFF} | self.ends[type(work)].left(work)
        return told | (self.past.kept(work, request.session_hash, told[self.status]) if self.past else {})

    def turned_away(self, request, refusal):
        """What is shown of a refusal; the buttons too, unless something of the same visitor is running."""
        return {self.status: refused(refusal)} | ({} if self.visits.of(request).busy else {self.run: ON, self.stop: OFF})

    def turn(self, exits, visitor):
        """Yields how many turns come first, until it is this visitor's; `exits` gives it up. BadRequest when the visitor
        has enough waiting. Where the profile has no turns the queue alone decides."""
        if self.turns:
            ticket = exits.enter_context(self.turns.held(visitor))
            while ahead := self.turns.place(visitor, ticket):
                yield ahead
                time.sleep(WAIT)

    def pause(self, visitor, work):
        """Lets the others take their turns while long work, which has this visitor's, waits."""
        ticket = self.turns.pass_on(visitor)
        while (ahead := self.turns.place(visitor, ticket)) and not work.stop.is_set():
            work.sentence = waiting(ahead)["sentence"]
            work.changed.set()
            time.sleep(WAIT)

    def job(self, wanted):
        """A comparison to be run, or one that was: the same request is not computed twice where the profile says so."""
        known = self.known.get(wanted)
        return known.again() if known else Job(wanted, self.profile.log_prompts)

    def remember(self, work):
        """Keeps a comparison for whoever asks the same: with rows that are refused to everybody, but none that may do better next time."""
        if isinstance(work, Job) and work.state == "finished" and work.request not in self.known and not any(
                words in (row.error or "") for row in work.rows.values() for words in PASSING):
            self.known[work.request] = work
        while len(self.known) > self.profile.remembered:
            self.known.pop(next(iter(self.known)))

    def end(self, request: gr.Request):
        """After a press on Stop: what is under way ends within one step, and what is finished stays."""
        if work := self.visits.of(request).work:
            work.stop.set()

    def stopped(self, request: gr.Request):
        """After a press on Stop of who waits: the place in the queue is given up, or the work ended that began meanwhile."""
        work = self.visits.of(request).work
        if work is None or work.told:
            return {self.status: {**IDLE, "sentence": "You left the queue."}, self.run: ON, self.stop: OFF}
        work.end()
        work.told = True
        return self.ended(request, work)

    def leave(self, request: gr.Request):
        """A closed tab ends its work and takes its pictures with it."""
        self.visits.leave(request)
        if self.shelf:
            self.shelf.owners.pop(request.session_hash, None)

    def notices(self, model, prompt):
        """What the model will not understand, told before the run."""
        if not isinstance(prompt, str) or len(prompt) > PROMPT_LENGTH or model not in self.profile.models or MODELS[model].missing:
            return []
        notes = [MODELS[model].note] * bool(MODELS[model].note)
        notes += [("unknown words: " if len(words) > 1 else "unknown word: ") + ", ".join(words)
                 for words in [unknown_words(model, prompt)] if words]
        cut = prompt_cut(model, prompt)
        return notes + ([f"too long for this model: cut before “{cut}”"] if cut else [])


def visitor(request):
    """Who asks, for turns: by address and, where there is a door, the name typed there, for two may type the same; else by tab."""
    return f"{request.client.host} {request.username or request.session_hash}"
