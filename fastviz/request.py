"""What a person may ask for: Request, its bounds, and every sentence that refuses one."""

import dataclasses
import re
import unicodedata
from dataclasses import dataclass

from . import given
from .methods import BY_KEY, METHODS, few_step, method_of, steps_of
from .models import MODELS

PROMPT_LENGTH = 300
STEPS = (1, 100)
GUIDANCE = (1.0, 20.0)
REPEATS = (1, 20)
STRENGTH = (0.1, 1.0)
ROWS = 12
METHODS_LENGTH = 10_000  # characters; the longest text that stack_text writes for ROWS rows is shorter
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
REFUSED_KINDS = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories: control, surrogate, line and paragraph separators
REFUSED = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # turn the direction of the text around them


class BadRequest(ValueError):
    """A request that cannot be run. `field` names the control that it belongs to; the text tells what to do."""

    def __init__(self, field, sentence):
        super().__init__(sentence)
        self.field = field

    def __reduce__(self):
        return type(self), (self.field, str(self))


def check_prompt(prompt):
    if not isinstance(prompt, str):
        raise BadRequest("prompt", "The prompt must be text.")
    if len(prompt) > 4 * PROMPT_LENGTH:  # before normalising, which is not free
        raise BadRequest("prompt", f"The prompt is too long: keep it within {PROMPT_LENGTH} characters.")
    prompt = unicodedata.normalize("NFC", prompt).strip()
    if not prompt:
        raise BadRequest("prompt", "Type a prompt first, for example: a cat and a pizza on the beach.")
    if len(prompt) > PROMPT_LENGTH:
        raise BadRequest("prompt", f"The prompt is too long: keep it within {PROMPT_LENGTH} characters.")
    if any(unicodedata.category(c) in REFUSED_KINDS or c in REFUSED for c in prompt):
        raise BadRequest("prompt", "The prompt contains control characters: retype it as plain text on one line.")
    return prompt


def check_number(field, name, value, low, high, kind):
    """`value` as an int or float within low..high. Text, bool, NaN and a fraction for an int are refused."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high or (kind is int and value != int(value)):
        raise BadRequest(field, f"{name} must be a {'whole ' if kind is int else ''}number from {low} to {high}.")
    return kind(value)


def read_number(text):
    """The number that `text` spells in ASCII, an int when it has only digits, or None."""
    text = text.strip()
    if len(text) > 40 or not NUMBER.fullmatch(text):
        return None
    return int(text) if text.lstrip("+-").isdigit() else float(text)


def check_text(name, value):
    """`value` without spaces at its ends. Brackets and commas are refused: they part settings and rows."""
    if not isinstance(value, str) or len(value) > PROMPT_LENGTH or set(value) & set("(),"):
        raise BadRequest("methods", f"{name} must be text without brackets and commas, {PROMPT_LENGTH} characters at most.")
    return value.strip()


def check_knobs(knobs):
    """The same Knobs with every field checked against its declaration."""
    method, values = method_of(knobs), {}
    for field in dataclasses.fields(knobs):
        value, told = getattr(knobs, field.name), field.metadata
        name = f"{method.TITLE}: {field.name}"
        if told["kind"] == "number":
            value = check_number("methods", name, value, told["low"], told["high"], type(field.default))
        elif told["kind"] == "choice" and not (isinstance(value, str) and value in told["options"]):
            raise BadRequest("methods", f"{name} must be one of {', '.join(told['options'])}.")
        elif told["kind"] == "switch" and not isinstance(value, bool):
            raise BadRequest("methods", f"{name} must be true or false.")
        elif told["kind"] == "text":
            value = check_text(name, value)
        values[field.name] = value
    knobs = type(knobs)(**values)
    try:
        getattr(method, "check", lambda knobs: None)(knobs)
    except ValueError as told:
        raise BadRequest("methods", f"{method.TITLE}: {told}") from None
    return knobs


def split(text, mark):
    """Splits at `mark` outside parentheses."""
    parts, depth = [""], 0
    for c in text:
        depth += (c == "(") - (c == ")")
        if c == mark and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return [part.strip() for part in parts]


def parse_knobs(text):
    """`tome(ratio=0.4, sx=4)` -> tome.Knobs. Fields that are not named keep their defaults."""
    key, bracket, inside = text.partition("(")
    key = key.strip()
    if key not in BY_KEY:
        raise BadRequest("methods", f"Unknown method {key[:40]!r}: choose from {', '.join(BY_KEY)}.")
    if bracket and not inside.endswith(")"):
        raise BadRequest("methods", f"A bracket is not closed after {key}.")
    knobs, values = BY_KEY[key].Knobs, {}
    fields = {field.name: field for field in dataclasses.fields(knobs)}
    for pair in filter(None, split(inside[:-1], ",")):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if name not in fields or not equals or name in values:
            known = ", ".join(fields) or "no settings"
            raise BadRequest("methods", f"{key} takes {known}, each once as name=value; got {pair[:40]!r}.")
        values[name] = read_value(f"{key}: {name}", fields[name], value)
    return knobs(**values)


def read_value(name, field, text):
    kind = field.metadata["kind"]
    if kind == "switch":
        if text.lower() not in ("true", "false"):
            raise BadRequest("methods", f"{name} must be true or false.")
        return text.lower() == "true"
    if kind != "number":
        return text
    value = read_number(text)
    if value is None:
        raise BadRequest("methods", f"{name} must be a number; got {text[:20]!r}.")
    return value


def parse_stack(text):
    """`tome(ratio=0.4)+attention_reuse` -> a tuple of Knobs."""
    return tuple(parse_knobs(part) for part in split(text, "+"))


def stack_text(stack):
    """The shortest text that parse_stack reads back as `stack`: only fields that differ from their defaults."""
    parts = []
    for knobs in stack:
        told = [f"{f.name}={str(v).lower() if isinstance(v, bool) else v}" for f in dataclasses.fields(knobs)
                if (v := getattr(knobs, f.name)) != f.default]
        parts.append(method_of(knobs).KEY + (f"({','.join(told)})" if told else ""))
    return "+".join(parts)


def methods_text(stacks):
    """`full,few_step(steps=8),tome+attention_reuse`: what Request.methods reads back as `stacks`."""
    return ",".join(map(stack_text, stacks))


def stack_keys(stack):
    """`tome+attention_reuse`: the methods of a stack without their settings."""
    return "+".join(method_of(knobs).KEY for knobs in stack)


def check_stack(stack):
    methods = [method_of(knobs) for knobs in stack]
    keys = [method.KEY for method in methods]
    if len(set(keys)) < len(keys):
        raise BadRequest("methods", f"{'+'.join(keys)}: a stack holds each method once.")
    if len(methods) > 1 and "full" in keys:
        raise BadRequest("methods", "The full model stands alone: a stack with it is the stack without it.")
    for role, what in (("scheduler", "schedulers"), ("weights", "sets of weights")):
        if sum(method.ROLE == role for method in methods) > 1:
            raise BadRequest("methods", f"{'+'.join(keys)}: two {what} cannot run at once; keep one of them.")
    if {"scheduler", "weights"} <= {method.ROLE for method in methods}:
        raise BadRequest("methods", f"{'+'.join(keys)}: a one-step model brings its own scheduler; leave the other out.")
    return tuple(check_knobs(knobs) for knobs in stack)


@dataclass(frozen=True)
class Request:
    """One comparison. Made means checked: a bad value raises BadRequest with a sentence.

    prompt: 1-300 characters; seed: 0..2**32-1; model: a key of models.MODELS; steps: 1-100; guidance: 1 (off) to 20;
    size: px of the square picture; methods: text such as "full, tome(ratio=0.4), tome+attention_reuse", or a tuple of
    stacks (tuples of Knobs); the full model is always the first row; repeats: how often each row is timed. None is the
    model's own steps, guidance, size and methods, and a model may allow less.

    sketch: None or a PNG of 256 x 256 px, black on white, as bytes, that every row follows; start: None or a square picture,
    as bytes, that every row begins from; strength: 0.1 to 1, how much of it may change, no matter without one. Both are kept
    in the form that given.py brings them to.
    """
    prompt: str
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    size: int | None = None
    model: str = "stickers"
    methods: tuple | str | None = None
    repeats: int = 3
    sketch: bytes | None = dataclasses.field(default=None, repr=False)
    start: bytes | None = dataclasses.field(default=None, repr=False)
    strength: float = 0.6

    def __post_init__(self):
        if not isinstance(self.model, str) or self.model not in MODELS:
            raise BadRequest("model", f"Unknown model: choose from {', '.join(MODELS)}.")
        model = MODELS[self.model]
        size = model.size if self.size is None else self.size
        size = check_number("size", "Size", size, min(model.sizes), max(model.sizes), int)
        if size not in model.sizes:
            raise BadRequest("size", f"Size must be one of {', '.join(map(str, model.sizes))}.")
        values = dict(
            prompt=check_prompt(self.prompt), size=size,
            seed=check_number("seed", "Seed", self.seed, 0, 2**32 - 1, int),
            steps=check_steps(model, model.steps if self.steps is None else self.steps),
            guidance=check_guidance(model, model.guidance if self.guidance is None else self.guidance),
            repeats=check_number("repeats", "Repeats", self.repeats, *REPEATS, int),
            methods=check_methods(model.rows if self.methods is None else self.methods),
        )
        fit_model(model, values["methods"], values["steps"])
        values |= {name: None if (data := getattr(self, name)) is None else check_given(name, data) for name in ("sketch", "start")}
        if values["start"] and model.most_steps == 1:
            raise BadRequest("start", f"{model.title} was trained for one step from pure noise and cannot start from a picture: remove "
                                      "the start picture.")
        values["strength"] = check_number("strength", "Strength", self.strength, *STRENGTH, float) if values["start"] else Request.strength
        for name, value in values.items():
            object.__setattr__(self, name, value)


def check_given(name, data):
    """What given.py makes of a picture from outside."""
    try:
        return getattr(given, name)(data)
    except ValueError as told:
        raise BadRequest(name, str(told)) from None


def check_steps(model, steps):
    steps = check_number("steps", "Steps", steps, *STEPS, int)
    if steps > model.most_steps:
        most = "one step" if model.most_steps == 1 else f"{model.most_steps} steps at most"
        raise BadRequest("steps", f"{model.title} was made for {most}: set the steps to {model.most_steps}.")
    return steps


def check_guidance(model, guidance):
    guidance = check_number("guidance", "Guidance", guidance, *GUIDANCE, float)
    if guidance > model.most_guidance:
        raise BadRequest("guidance", f"{model.title} was made to run without guidance: set it to {model.most_guidance:g}.")
    return guidance


def fit_model(model, stacks, steps):
    """BadRequest for a row that does nothing on this model, or that takes more steps than it was made for."""
    for method in (method_of(knobs) for stack in stacks for knobs in stack):
        if method.KEY not in model.methods:
            why = getattr(method, "NEEDS", "")
            raise BadRequest("methods", f"{method.TITLE} changes nothing on {model.title}{why and f', which has no {why}'}: leave it out.")
    for stack in stacks:
        if not any(getattr(knobs, "match", "") for knobs in stack):
            if (taken := steps_of(stack, steps)) > model.most_steps:
                raise BadRequest("methods", f"{stack_text(stack)} takes {taken} steps, and {model.title} was made for "
                                            f"{model.most_steps} at most: set fewer.")


def check_methods(methods):
    """A tuple of checked stacks, full model first, no stack twice, every `match` naming an earlier row."""
    if isinstance(methods, str):
        if len(methods) > METHODS_LENGTH:
            raise BadRequest("methods", f"The list of methods is too long: {ROWS} rows at most.")
        methods = tuple(parse_stack(part) for part in filter(None, split(methods, ",")))
    kinds = {method.Knobs for method in METHODS}
    if not isinstance(methods, tuple) or not all(
            isinstance(stack, tuple) and stack and all(type(knobs) in kinds for knobs in stack) for stack in methods):
        raise BadRequest("methods", "Methods must be text such as full,tome or a tuple of stacks of Knobs.")
    stacks = [check_stack(stack) for stack in methods]
    full = (BY_KEY["full"].Knobs(),)
    stacks = [full, *(stack for stack in stacks if stack != full)]
    if len(set(stacks)) < len(stacks):
        raise BadRequest("methods", "The same row was asked for twice: change a setting or leave one out.")
    if len(stacks) > ROWS:
        raise BadRequest("methods", f"{len(stacks)} rows are too many: {ROWS} at most.")
    for knobs in (knobs for stack in stacks for knobs in stack if isinstance(knobs, few_step.Knobs) and knobs.match):
        rows = [stack_keys(stack) for stack in stacks if not any(getattr(k, "match", "") for k in stack)]
        if knobs.match not in rows:
            raise BadRequest("methods", f"There is no row {knobs.match[:60]!r} to match: choose from {', '.join(rows)}.")
    return tuple(stacks)
