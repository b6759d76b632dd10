"""What the page asks: controls built from the tables and the methods' Knobs, and their way to a Request and back."""

import dataclasses

import gradio as gr

from ..methods import BY_KEY, METHODS, few_step, method_of
from ..models import MODELS
from ..request import GUIDANCE, PROMPT_LENGTH, BadRequest, Request, parse_stack, split, stack_text
from . import draw

DEFAULTS = {f"{method.KEY}.{field.name}": field.default for method in METHODS for field in dataclasses.fields(method.Knobs)}


def begins(model):
    """{control: value} of all methods' settings as the page begins with them: the model's own values, where it has some."""
    own = parse_stack(model.begins) if model.begins else ()
    told = {f"{method_of(knobs).KEY}.{name}": value for knobs in own for name, value in vars(knobs).items()}
    return DEFAULTS | {"few_step.steps": min(few_step.Knobs().steps, model.steps)} | told


BEGUN = tuple(sorted({name for model in MODELS.values() for name, value in begins(model).items() if value != DEFAULTS[name]} - {"few_step.steps"}))
OWN = ("steps", "few_step.steps", "guidance", "size", *BEGUN)  # controls whose values are the model's own until somebody moves them
CHOSEN = tuple(method for method in METHODS  # the full model always runs, and what is not there cannot be chosen
                if method.KEY != "full" and getattr(method, "ready", lambda: True)())
CURVE = (0.1, 0.2, 0.4, 0.6)  # shares of the steps at which the few-step curve is measured


def control(field):
    """The control for one field of a Knobs dataclass."""
    told, name = field.metadata, field.name.replace("_", " ").capitalize()
    common = dict(label=name, info=told["says"], value=field.default)
    if told["kind"] == "number":
        return gr.Slider(told["low"], told["high"], step=told["step"], buttons=[], **common)
    if told["kind"] == "choice":
        return gr.Dropdown([(label, value) for value, label in told["options"].items()], filterable=False, **common)
    if told["kind"] == "switch":
        return gr.Checkbox(**common)
    return gr.Textbox(max_lines=1, max_length=PROMPT_LENGTH, **common)


class Ask:
    """Every control of the page by name, in the order in which their values travel."""

    def __init__(self, profile):
        self.profile = profile
        self.controls = {}

    def add(self, name, component):
        self.controls[name] = component
        return component

    def general(self):
        """Seed, steps, guidance and how often to time: the controls that belong to the whole comparison."""
        model = MODELS[self.profile.models[0]]
        offered = [(MODELS[key].title, key) for key in self.profile.models if not MODELS[key].missing]
        self.add("model", gr.Dropdown(offered, value=model.key, label="Model", filterable=False,
                                      visible=len(offered) > 1 or "hidden", elem_id="ask-model"))
        with gr.Row(elem_classes="pair seed"):
            self.add("seed", gr.Number(0, label="Seed", info="Decides the starting noise.", elem_id="ask-seed",
                                        min_width=120))
            dice = gr.Button("Dice", elem_id="dice", min_width=72, size="sm")
        self.add("steps", gr.Slider(1, self.profile.max_steps, model.steps, step=1, label="Steps", buttons=[],
                                    elem_id="ask-steps", info="How often the full model cleans up the noise."))
        self.add("guidance", gr.Slider(*GUIDANCE, model.guidance, step=0.1, label="Guidance", buttons=[],
                                       elem_id="ask-guidance", info="How closely to follow the prompt. 1 switches it off."))
        self.add("repeats", gr.Slider(1, self.profile.max_repeats, 1, step=1, label="Timed runs per row", buttons=[],
                                      elem_id="ask-repeats", info="1 is quick. From 3 on, the median is steadier."))
        return dice

    def method(self, method):
        """A check box for one method; its settings, folded, are there while it is on, the finer ones folded once more."""
        fields = dataclasses.fields(method.Knobs)
        with gr.Group(elem_classes="method"):
            self.add(method.KEY, gr.Checkbox(False, label=method.TITLE, info=method.SAYS, elem_classes="method-on",
                                             elem_id=f"method-{method.KEY}"))
            with gr.Accordion("Settings", open=False, elem_classes="knobs", visible=bool(fields)):
                self.knobs(method, [field for field in fields if not field.metadata["tinker"]])
                if finer := [field for field in fields if field.metadata["tinker"]]:
                    with gr.Accordion("To tinker with", open=False):
                        self.knobs(method, finer)

    def knobs(self, method, fields):
        for field in fields:
            self.add(f"{method.KEY}.{field.name}", control(field))

    def rows(self):
        """What makes rows beyond one per method."""
        self.add("combine", gr.CheckboxGroup([(method.TITLE, method.KEY) for method in CHOSEN], value=[],
                                             label="Combine in one row",
                                             info="Two or more run together, with their settings above."))
        self.add("curve", gr.Checkbox(False, label="Draw the curve of fewer steps",
                                      info="Four more rows: what simply taking fewer steps costs and gives."))
        self.add("more", gr.Textbox("", label="More rows", placeholder="tome(ratio=0.25), tome+attention_reuse",
                                    max_lines=1, elem_id="ask-more", info="As on the command line, separated by commas."))
        model = MODELS[self.profile.models[0]]
        self.add("size", gr.Dropdown(self.offered(model), value=model.size, filterable=False, label="Picture size", elem_id="ask-size",
                                     info="In pixels. Pictures look best in the size that the model was trained for."))

    def own(self, key):
        """Updates of the controls that depend on the model, in the order of OWN: its own values, and what it allows."""
        model = MODELS[key]
        begun = begins(model)
        return [*self.steps(model, model.steps, begun["few_step.steps"]), gr.Slider(value=model.guidance, interactive=model.most_guidance > 1),
                self.sizes(model, model.size), *(gr.update(value=begun[name]) for name in BEGUN),
                *(gr.Checkbox(value=False, interactive=method.KEY in model.methods) if method.KEY not in model.methods
                  else gr.Checkbox(interactive=True) for method in CHOSEN)]

    def steps(self, model, steps, few):
        """Both sliders of steps, with no more to choose from than the model was made for."""
        most = min(self.profile.max_steps, model.most_steps)
        return gr.Slider(maximum=max(2, most), value=steps, interactive=most > 1), gr.Slider(maximum=most, value=few)

    def sizes(self, model, size):
        return gr.Dropdown(self.offered(model), value=size)

    def offered(self, model):
        """(label, size) of every size that may be chosen."""
        told = ", timing only" if model.one_size else ""
        return [(f"{size} x {size}{told if size != model.size else ''}", size) for size in model.sizes if size <= self.profile.max_size]

    def request(self, values):
        """The controls' values, as they came from outside, -> a checked Request. BadRequest names the field."""
        told = dict(zip(self.controls, values, strict=True))
        plain = {name: told[name] for name in ("prompt", "seed", "steps", "guidance", "size", "model", "repeats")}
        if plain["steps"] is None:
            raise BadRequest("steps", "Steps must be a whole number: the field is empty.")
        return self.profile.check(Request(methods=stacks(told), **plain, **draw.asked(told)))

    def show(self, request):
        """Lets the controls begin with `request`."""
        for control, value in zip(self.controls.values(), self.values(request), strict=True):
            control.value = value

    def values(self, request):
        """The values that make `request` again, in the controls' order; rows without a control go to `more`."""
        told = {name: getattr(request, name, None) for name in self.controls} | draw.values(request)
        told |= {"combine": [], "curve": False} | {method.KEY: False for method in CHOSEN}
        told |= begins(MODELS[request.model])
        rest = []
        for stack in request.methods[1:]:
            key = method_of(stack[0]).KEY
            if len(stack) == 1 and not told.get(key, True):
                told |= {key: True} | {f"{key}.{name}": value for name, value in vars(stack[0]).items()}
            else:
                rest.append(stack)
        told["more"] = ", ".join(map(stack_text, rest))
        return [told[name] for name in self.controls]

    def settings(self, request):
        """The same, with the steps and sizes that the request's model has to choose from."""
        values, model = dict(zip(self.controls, self.values(request), strict=True)), MODELS[request.model]
        values["steps"], values["few_step.steps"] = self.steps(model, request.steps, values["few_step.steps"])
        values["size"] = self.sizes(model, request.size)
        return list(values.values())


def method_knobs(told, method):
    """One method's Knobs with the values of its controls, unchecked."""
    return method.Knobs(**{field.name: told[f"{method.KEY}.{field.name}"] for field in dataclasses.fields(method.Knobs)})


def stacks(told):
    """The rows that the controls ask for, as a tuple of stacks; the curve leaves out what is there already."""
    rows = [(method_knobs(told, method),) for method in CHOSEN if told[method.KEY] is True]
    if combine := told["combine"]:
        known = isinstance(combine, list) and all(isinstance(key, str) and key in BY_KEY for key in combine)
        if not known or len(combine) < 2:
            raise BadRequest("methods", "Choose two or more methods to combine, or none.")
        rows.append(tuple(method_knobs(told, method) for method in reversed(CHOSEN) if method.KEY in combine))
    if told["curve"] is True:
        rows += [row for row in curve(told) if row not in rows]
    return (*rows, *more(told["more"]))


def curve(told):
    """The same solver at several numbers of steps; nothing when the steps are not a number (which Request refuses)."""
    steps = told["steps"]
    if isinstance(steps, bool) or not isinstance(steps, (int, float)) or not 1 <= steps <= 1000:
        return []
    counts = sorted({max(1, round(share * steps)) for share in CURVE}, reverse=True)
    return [(few_step.Knobs(solver=told["few_step.solver"], steps=count),) for count in counts]


def more(text):
    """Stacks written as text."""
    if not isinstance(text, str) or len(text) > 2000:
        raise BadRequest("more", "More rows must be text such as tome(ratio=0.25), tome+attention_reuse.")
    try:
        return [parse_stack(part) for part in split(text, ",") if part]
    except BadRequest as refusal:
        raise BadRequest("more", str(refusal)) from None
