"""What a sweep runs: rows whose knobs, steps, guidance or size take several values, over prompts and seeds."""

import dataclasses
import itertools
from dataclasses import dataclass

from ..methods import BY_KEY, few_step, method_of
from ..request import BadRequest, Request, check_number, check_prompt, check_stack, parse_stack, read_number, read_value, split, stack_text

GENERAL = ("steps", "guidance", "size")  # variables of the request; all others are method.knob
SEEDS, PROMPTS, VALUES, CELLS = 100, 50, 50, 5000  # at most, of one sweep


@dataclass(frozen=True)
class Variant:
    """One point of a sweep. at: ((variable, value), ...), "row" first, values as text; general: what it changes in the
    request; stack: what runs, with knobs set."""
    at: tuple
    general: tuple
    stack: tuple

    def request(self, plan, prompt, seed):
        settings = {name: getattr(plan, name) for name in GENERAL} | dict(self.general)
        return Request(prompt, seed=seed, model=plan.model, methods=(self.stack,), repeats=1, **settings)


@dataclass(frozen=True)
class Plan:
    """A whole sweep: every variant on every prompt with every seed. vary: ((variable, (value, ...)), ...)."""
    prompts: tuple
    seeds: tuple
    rows: tuple
    vary: tuple
    model: str = "stickers"
    steps: int = 50
    guidance: float | None = None
    size: int | None = None

    @property
    def units(self):
        """((prompt, seed), ...): what all variants share, so that they can be compared in pairs."""
        return tuple(itertools.product(self.prompts, self.seeds))

    @property
    def variants(self):
        """The full model's and every row's, for all values that concern them; each once."""
        general = [(name, values) for name, values in self.vary if name in GENERAL]
        found = {}
        for row in ((BY_KEY["full"].Knobs(),), *self.rows):
            keys = [method_of(knobs).KEY for knobs in row]
            own = [(name, values) for name, values in self.vary if name.partition(".")[0] in keys]
            for values in itertools.product(*(values for _, values in general + own)):
                chosen = dict(zip([name for name, _ in general + own], values))
                stack = settled(row, chosen)
                told = (("row", stack_text(row)), *((name, str(value)) for name, value in chosen.items()))
                variant = Variant(told, tuple((name, chosen[name]) for name, _ in general), stack)
                found.setdefault((variant.general, stack), variant)
        return tuple(found.values())

    def plain(self):
        """As values that json writes, and `again` reads."""
        return vars(self) | {"rows": [stack_text(row) for row in self.rows]}


def again(told):
    """The Plan that `plain` told of."""
    return Plan(**told | {name: tuple(told[name]) for name in ("prompts", "seeds")} | {
        "rows": tuple(map(parse_stack, told["rows"])), "vary": tuple((name, tuple(values)) for name, values in told["vary"])})


def settled(row, chosen):
    """The stack `row` with the knobs that `chosen` names."""
    stack = []
    for knobs in row:
        own = {name.partition(".")[2]: value for name, value in chosen.items() if name.partition(".")[0] == method_of(knobs).KEY}
        stack.append(dataclasses.replace(knobs, **own))
    return check_stack(stack)


# Reading

def read_plan(prompts, seeds="0", rows="", vary=(), most=CELLS, **settings):
    """A checked Plan. prompts: texts; seeds: "0-3" or "1,5,9"; rows: "tome,tome+attention_reuse", by default one for each
    method that is varied; vary: texts such as "tome.ratio=0.2,0.4" or "few_step.steps=5:25:5"; settings: model, steps,
    guidance, size. BadRequest names the control, and refuses more than `most` pictures."""
    prompts = list(dict.fromkeys(check_prompt(prompt) for prompt in prompts))
    if not 1 <= len(prompts) <= PROMPTS:
        raise BadRequest("prompt", f"A sweep takes 1 to {PROMPTS} prompts.")
    vary = tuple(map(read_variable, vary))
    named = list(dict.fromkeys(name.partition(".")[0] for name, _ in vary if name not in GENERAL))
    texts = [part for part in split(rows, ",") if part] or named
    stacks = tuple(check_stack(parse_stack(text)) for text in texts)
    if not stacks:
        raise BadRequest("sweep-rows", "Name a row to sweep, such as tome, or vary a knob, such as tome.ratio=0.2,0.4,0.6.")
    for stack in stacks:
        if any(isinstance(knobs, few_step.Knobs) and knobs.match for knobs in stack):
            raise BadRequest("sweep-rows", "A sweep has no rows that match another one's time: say how many steps.")
    there = {method_of(knobs).KEY for stack in stacks for knobs in stack}
    for name, _ in vary:
        if name not in GENERAL and name.partition(".")[0] not in there:
            raise BadRequest("vary", f"{name} concerns none of the rows: add {name.partition('.')[0]} to them.")
    if len({name for name, _ in vary}) < len(vary):
        raise BadRequest("vary", "Vary each setting once, with all its values.")
    plan = Plan(tuple(prompts), read_seeds(seeds), stacks, vary, **settings)
    requests = [variant.request(plan, prompts[0], 0) for variant in plan.variants]  # refuses what cannot be
    first = requests[0]
    plan = dataclasses.replace(plan, **{name: getattr(first, name) for name in GENERAL if name not in dict(vary)})
    if (cells := len(requests) * len(plan.units)) > most:
        raise BadRequest("vary", f"{cells} pictures are too many: {most} at most. Take fewer values, prompts or seeds.")
    return plan


def read_seeds(text):
    """"0-3" or "1,5,9" -> a tuple of seeds."""
    found = []
    for part in filter(None, split(text, ",")):
        low, dash, high = part.partition("-")
        ends = [read_number(end) for end in ([low, high] if dash else [part])]
        if any(type(end) is not int for end in ends) or ends[-1] - ends[0] >= SEEDS:
            raise BadRequest("seeds", f"Seeds must be whole numbers such as 0-3 or 1,5,9, {SEEDS} at most.")
        found += range(ends[0], ends[-1] + 1)
    found = [check_number("seeds", "Seed", seed, 0, 2**32 - 1, int) for seed in dict.fromkeys(found)]
    if not 1 <= len(found) <= SEEDS:
        raise BadRequest("seeds", f"Name 1 to {SEEDS} seeds, such as 0-3.")
    return tuple(found)


def read_variable(text):
    """"tome.ratio=0.2,0.4" or "steps=10:50:10" -> (name, values)."""
    name, equals, told = (part.strip() for part in text.partition("="))
    field = field_of(name)
    if not equals or not told or field is None:
        raise BadRequest("vary", f"Write what varies as method.knob=values, such as tome.ratio=0.2,0.4; got {text[:40]!r}.")
    values = list(dict.fromkeys(value for part in split(told, ",") for value in read_values(name, field, part)))
    if not 1 <= len(values) <= VALUES:
        raise BadRequest("vary", f"{name} takes 1 to {VALUES} values.")
    return name, tuple(values)


def field_of(name):
    """The declaration of a variable: a dataclass field, the name itself for the request's, None for what there is not."""
    key, _, knob = name.partition(".")
    if name in GENERAL:
        return name
    fields = {field.name: field for field in dataclasses.fields(BY_KEY[key].Knobs)} if key in BY_KEY else {}
    return fields.get(knob)


def read_values(name, field, text):
    """The values of one part between commas: itself, or the numbers of a range low:high:step."""
    ends = [read_number(part) for part in text.split(":")]
    if len(ends) == 3 and None not in ends:
        low, high, step = ends
        if step <= 0 or not 0 <= (high - low) / step < VALUES:
            raise BadRequest("vary", f"{name}: a range is low:high:step, with at most {VALUES} values.")
        return [type(low + step)(round(low + i * step, 10)) for i in range(int((high - low) / step + 1e-9) + 1)]
    if field in GENERAL:
        if ends != [None] and len(ends) == 1:
            return ends
        raise BadRequest("vary", f"{name} must be numbers; got {text[:20]!r}.")
    return [read_value(name, field, text)]
