"""Lessons as data: what each one runs, what it asks, how the right answer follows from what was measured, whose work it is.

The texts lie in words/, one file per language; figures.py reads the rows, shipped.py what was measured beforehand, and
make.py measures it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ..methods import sdxs
from ..models import MODELS
from ..request import Request

PROMPT, SEED = "a cat on the beach", 7  # one picture for all lessons, so that only what is taught differs
MODEL = "stickers"


@dataclass(frozen=True)
class Lesson:
    """rows: name in the texts -> stack, beside `full`; student: whether the one-step student joins as soon as there is one;
    options: of the question, in display order; answer: from a function that gives figures by name to one of the options, see
    figures.answer; chart: what is drawn of the rows; closing: of closing.py; papers: (authors and title, arXiv number)."""
    key: str
    rows: dict
    options: tuple
    answer: Callable
    chart: str
    closing: str
    papers: tuple
    steps: int = 50
    student: bool = False

    @property
    def names(self):
        """The names of the rows, in order, the full model's first."""
        model = MODELS[MODEL]
        joined = ("student",) if self.student and sdxs.KEY in model.methods and not sdxs.missing(model.folder) else ()
        return "full", *self.rows, *joined

    def request(self, repeats=1):
        """What is run, live once and beforehand several times."""
        stacks = ["full", *self.rows.values()] + ["sdxs"] * ("student" in self.names)
        return Request(PROMPT, seed=SEED, steps=self.steps, model=MODEL, methods=",".join(stacks), repeats=repeats)


def band(value, limits, options):
    """The option for the interval between `limits` that a value lies in; one more option than limits."""
    return options[sum(value > limit for limit in limits)]


def faster(of, name, limits, options):
    """The option for a row's speed-up; the first one where its runs and the full model's overlap in time."""
    return options[0] if of(f"{name}.slowest") > of("full.fastest") else band(of(f"{name}.speedup"), limits, options)


def closer(of, one, other, options, factor=1.2):
    """options: (one's picture is closer, the other's is, neither by that factor)."""
    one, other = of(f"{one}.lpips"), of(f"{other}.lpips")
    return options[2] if max(one, other) <= factor * min(one, other) else options[one > other]


def stacked(of, both, alone, options, factor=1.1):
    """options: how far the picture of two methods together is off: no further than the worse one's, than both distances
    added up, or further, by that factor."""
    apart = [of(f"{name}.lpips") for name in alone]
    return band(of(f"{both}.lpips"), (factor * max(apart), factor * sum(apart)), options)


def closest(of, names):
    """The name of the row whose picture is closest to the full model's."""
    return min(names, key=lambda name: of(f"{name}.lpips"))


def schedule(steps, reused):
    """A schedule of attention reuse as text: `reused` are the steps, from 0, that take an earlier map."""
    return "".join("0" if step in reused else "1" for step in range(steps))


def reuse(steps, reused, more=""):
    return f"attention_reuse({more}schedule={schedule(steps, reused)})"


DDIM = "Song et al., Denoising Diffusion Implicit Models", "2010.02502"
DPM = "Lu et al., DPM-Solver++", "2211.01095"
OLSS = "Duan et al., Optimal Linear Subspace Search", "2305.14677"
HURRY = "Hunter et al., Fast Sampling Through The Reuse Of Attention Maps in Diffusion Models", "2401.01008"
PAB = "Zhao et al., Real-Time Video Generation with Pyramid Attention Broadcast", "2408.12588"
TOME = "Bolya and Hoffman, Token Merging for Fast Stable Diffusion", "2303.17604"
ATEDM = "Wang et al., Attention-Driven Training-Free Efficiency Enhancement of Diffusion Models", "2405.05252"
SDXS = "Song et al., SDXS: Real-Time One-Step Latent Diffusion Models with Image Conditions", "2403.16627"
LATENT = "Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models", "2112.10752"
GUIDANCE = "Ho and Salimans, Classifier-Free Diffusion Guidance", "2207.12598"

LESSONS = (
    Lesson("slow", {"half": "few_step(solver=ddim,steps=25)", "few": "few_step(solver=ddim,steps=10)"},
           ("half", "most", "all"), lambda of: band(of("full.denoising"), (2 / 3, 0.9), ("half", "most", "all")),
           "parts", "film", (LATENT, GUIDANCE, DDIM)),
    Lesson("steps", {"ddim": "few_step(solver=ddim,steps=10)", "dpm": "few_step(steps=10)", "olss": "olss(steps=10)",
                     "ddim20": "few_step(solver=ddim,steps=20)", "dpm20": "few_step(steps=20)"},
           ("ddim", "dpm", "olss"), lambda of: closest(of, ("ddim", "dpm", "olss")),
           "front", "solvers", (DDIM, DPM, OLSS)),
    Lesson("reuse", {"early": reuse(30, range(1, 16)), "late": reuse(30, range(15, 30)), "even": reuse(30, range(1, 30, 2))},
           ("early", "late", "same"), lambda of: closer(of, "early", "late", ("early", "late", "same")),
           "", "change", (HURRY, PAB), steps=30),
    Lesson("merge", {"quarter": "tome(ratio=0.25)", "half": "tome", "most": "tome(ratio=0.75)"},
           ("double", "little", "none"), lambda of: faster(of, "half", (1.05, 1.5), ("none", "little", "double")),
           "work", "merged", (TOME,), steps=30),
    Lesson("prune", {"zero": "atedm(recover=zero)", "nearest": "atedm(recover=nearest)", "copy": "atedm",
                     "update": "atedm(recover=update)"},
           ("zero", "nearest", "copy", "update"), lambda of: closest(of, ("zero", "nearest", "copy", "update")),
           "", "pruned", (ATEDM,), steps=30),
    Lesson("once", {"one": "few_step(solver=ddim,steps=1)", "two": "few_step(solver=ddim,steps=2)", "four": "few_step(steps=4)",
                    "eight": "few_step(steps=8)"},
           ("nothing", "place", "detail"), lambda of: band(of("one.match"), (0.25, 0.75), ("nothing", "place", "detail")),
           "", "seeds", (SDXS,), student=True),
    Lesson("stack", {"few": "few_step(steps=10)", "reuse": reuse(30, range(1, 30, 2), "keep=output,"), "merge": "tome",
                     "both": f"few_step(steps=10)+{reuse(10, range(1, 10, 2), 'keep=output,')}",
                     "merged": "few_step(steps=10)+tome"},
           ("larger", "sum", "more"), lambda of: stacked(of, "both", ("few", "reuse"), ("larger", "sum", "more")),
           "front", "fronts", (DPM, PAB, TOME), steps=30),
)
BY_KEY = {lesson.key: lesson for lesson in LESSONS}
