"""The search for a schedule: starts, swaps, restarts. Our reconstruction of PHAST (Hunter et al., arXiv 2401.01008), of
which the paper says that it perturbs a heuristic schedule and keeps what is better.

Where the additive model starts it, the best schedules under that model are tried beside HURRY's, and swaps in the order
in which it expects something of them; else HURRY is the only start, and swaps are random.
"""

import random
import time
from dataclasses import dataclass, field
from statistics import mean

import torch

from ..methods.attention_reuse import hurry
from . import additive, schedules
from .sampler import closeness

EXPONENTS = (1.0, 0.75, 0.5)  # of the segments' mean squares: 1 if their errors are independent, 1/2 if they align
RANK = 0.75  # between the two, where the model's order agrees best with what is measured


class OutOfTime(Exception):
    """The time that this session may take is over; the state is saved."""


@dataclass(frozen=True)
class Plan:
    """What decides a search's course. k: steps that reuse; objective: "psnr" or "latent"; start: "additive" or "hurry";
    rejects: moves in a row that are no better before a climb ends; restarts: climbs after the first, each from a
    perturbation of the best schedule; seed: of what is drawn."""
    k: int
    objective: str = "psnr"
    start: str = "additive"
    rejects: int = 30
    restarts: int = 2
    seed: int = 0


@dataclass
class State:
    """Where a search is, as plain values. Schedules are texts of digits; scores: dB of each prompt; steps_run: steps of
    the network times prompts, as executed; history: [steps_run, schedule, mean dB] of each new best."""
    gain: list = field(default_factory=list)
    table: list = field(default_factory=list)
    scores: dict = field(default_factory=dict)
    tried: list = field(default_factory=list)
    starts: dict = field(default_factory=dict)
    current: str = ""
    best: str = ""
    rejected: int = 0
    climb: int = 0
    finished: bool = False
    steps_run: int = 0
    seconds: float = 0.0
    history: list = field(default_factory=list)


def powers(table, exponent):
    return [[cost ** exponent for cost in costs] for costs in table]


class Search:
    """One search on batches of prompts, a Sampler each. `save(state)` is called after whatever took time, so that a
    search which is stopped goes on from there; `tell(search)` as often as a progress bar wants."""

    def __init__(self, samplers, plan, state, save=lambda state: None, tell=lambda search: None, seconds=None):
        self.samplers, self.plan, self.state, self.save, self.tell = samplers, plan, state, save, tell
        self.steps = samplers[0].first.steps
        self.began, self.before, self.seconds = time.monotonic(), state.seconds, seconds
        self.prompts = sum(len(sampler.requests) for sampler in samplers)
        self.ran, self.phase, self.evaluations = 0, "the full model", []
        for sampler in samplers:
            sampler.on_step = self.count
        self.known = [{} for _ in samplers]  # of each batch, by name: Paths that others share their beginning with

    def count(self, prompts):
        self.state.steps_run += prompts
        self.ran += prompts
        self.tell(self)

    def run(self):
        """Goes on until the search is finished or its time is over."""
        try:
            self.references()
            if not self.state.current:
                self.begin()
            self.adopt("current", self.state.current)
            self.verify()
            while not self.state.finished:
                self.climb()
        except OutOfTime:
            pass
        return self.state

    def verify(self):
        """Runs the current schedule's first batch from the start: shared beginnings must not have changed a bit."""
        self.phase, path = "checking shared beginnings", self.known[0]["current"]
        whole = self.samplers[0].run(path.gamma)
        if not all(torch.equal(a, b) for a, b in zip(whole.latents, path.latents, strict=True)):
            raise RuntimeError("A run from a shared beginning differs from the whole run: this device does not repeat "
                               "itself.")

    def left(self):
        """Network steps times prompts that are still to come if nothing better is found, roughly."""
        plan, state = self.plan, self.state
        each = mean(self.evaluations) if self.evaluations else 0.6 * self.steps * self.prompts
        moves = (plan.restarts - state.climb + 1) * plan.rejects - state.rejected
        model = plan.start == "additive" and not state.current
        return each * moves + model * 10 * self.steps * len(self.samplers[0].requests)

    def keep(self):
        """Saves, and ends the session when its time is over."""
        passed = time.monotonic() - self.began
        self.state.seconds = self.before + passed
        self.save(self.state)
        if self.seconds is not None and passed >= self.seconds:
            raise OutOfTime

    # What is run

    def references(self):
        for sampler, known in zip(self.samplers, self.known):
            known["full"] = sampler.run((1,) * self.steps)

    def evaluate(self, gamma, rival=None):
        """dB of each prompt, or None as soon as a batch is over after which `rival`, a schedule with scores, leads."""
        lead, scores, paths, before = 0.0, [], [], self.ran
        for sampler, known in zip(self.samplers, self.known):
            paths.append(sampler.run(gamma, list(known.values())))
            found = closeness(sampler, paths[-1], known["full"], self.plan.objective)
            if rival:
                lead += sum(found) - sum(self.state.scores[rival][len(scores):len(scores) + len(found)])
            scores += found
            if rival and lead <= 0:
                break
        self.state.tried.append(schedules.text(gamma))
        self.evaluations.append(self.ran - before)
        if len(scores) < self.prompts or (rival and lead <= 0):
            return None
        self.state.scores[schedules.text(gamma)] = scores
        for known, path in zip(self.known, paths):
            known["latest"] = path
        return scores

    def mean(self, digits):
        return mean(self.state.scores[digits])

    def adopt(self, name, digits):
        """Keeps the Paths of a schedule under a name; they are run where they are not at hand."""
        gamma = schedules.read(digits)
        for sampler, known in zip(self.samplers, self.known):
            near = next((path for path in known.values() if path.gamma == gamma), None)
            known[name] = near or sampler.run(gamma, list(known.values()))

    # The parts of a search, in order

    def measure(self):
        """The additive model, on the first batch."""
        state, sampler, reference = self.state, self.samplers[0], self.known[0]["full"]
        self.phase = "measuring the additive model"
        if not state.gain:
            state.gain = additive.amplification(sampler, reference)
            state.table = [[0.0] for _ in range(self.steps)]
            self.keep()
        additive.measure(sampler, reference, state.gain, state.table, self.plan.k, self.keep)

    def begin(self):
        """Tries the starts; the best one becomes the first climb's."""
        self.start("HURRY", hurry(self.steps, self.plan.k))
        if self.plan.start == "additive":
            self.start("even", schedules.even(self.steps, self.plan.k))
            self.measure()
            for exponent in EXPONENTS:
                gamma = schedules.cheapest(powers(self.state.table, exponent), self.steps, self.plan.k)
                self.start(f"additive {exponent:g}", gamma)
        self.state.current = self.state.best
        self.keep()

    def start(self, name, gamma):
        if name in self.state.starts:
            return
        self.phase, digits = f"trying {name}", schedules.text(gamma)
        if digits not in self.state.scores:
            self.evaluate(gamma)
        self.state.starts[name] = digits
        self.note(digits)
        self.keep()

    def note(self, digits):
        """Remembers a schedule that is the best so far."""
        if not self.state.best or self.mean(digits) > self.mean(self.state.best):
            self.state.best = digits
            self.state.history.append([self.state.steps_run, digits, self.mean(digits)])

    def climb(self):
        """Moves from the current schedule until `rejects` in a row were no better, then restarts."""
        while self.state.rejected < self.plan.rejects and (gamma := self.propose()):
            self.phase = (f"climb {self.state.climb + 1} of {self.plan.restarts + 1}, {self.state.rejected} moves "
                          "rejected")
            self.move(gamma)
            self.keep()
        if self.state.climb < self.plan.restarts and (gamma := self.restart()):
            self.evaluate(gamma)
            self.state.climb, self.state.rejected, self.state.current = self.state.climb + 1, 0, schedules.text(gamma)
            self.adopt("current", self.state.current)
            self.note(self.state.current)
        else:
            self.state.finished = True
        self.keep()

    def propose(self):
        """The next swap to try, or None when all were."""
        tried = set(self.state.tried)
        left = [gamma for gamma in schedules.swaps(schedules.read(self.state.current))
                if schedules.text(gamma) not in tried]
        if not left:
            return None
        if self.plan.start == "additive":
            table = powers(self.state.table, RANK)
            return min(left, key=lambda gamma: schedules.cost(gamma, table))
        return random.Random(f"{self.plan.seed}/{len(tried)}").choice(left)

    def move(self, gamma):
        scores = self.evaluate(gamma, self.state.current)
        if scores is None:
            self.state.rejected += 1
            return
        self.state.current, self.state.rejected = schedules.text(gamma), 0
        self.adopt("current", self.state.current)
        self.note(self.state.current)

    def restart(self):
        """The best schedule, perturbed by as many random swaps as a fifth of its reuses; None when all were tried."""
        rng = random.Random(f"{self.plan.seed}/restart/{self.state.climb}")
        for _ in range(100):
            gamma = schedules.perturbed(schedules.read(self.state.best), max(2, self.plan.k // 5), rng)
            if schedules.text(gamma) not in self.state.tried:
                return gamma
        return None
