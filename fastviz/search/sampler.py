"""Batches of prompts through a reuse schedule, from the first step on that an earlier run does not share."""

import math
from dataclasses import dataclass

import torch

from .. import metrics
from ..methods import attached, attention_reuse
from ..request import BadRequest
from ..run import context_of, pictures
from .network import Network

EQUAL = 100.0  # dB that equal pictures count, so that means stay finite


@dataclass
class Path:
    """One run. latents[i], (B, 4, h, w), enters step i, and the last one is the result; pictures: of it, once asked."""
    gamma: tuple
    latents: list
    pictures: list = ()

    def common(self, gamma):
        """The number of steps that a run of `gamma` can take over."""
        return min(shared(gamma, self.gamma), len(self.latents) - 1)


def shared(gamma, other):
    """The number of steps that two schedules begin with alike: a step that stores is not one that only computes."""
    pairs = zip(*(zip(one, attention_reuse.stored(one)) for one in (gamma, other)))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(gamma))


class Sampler:
    """One batch: what its steps need, made once. on_step(prompts) is called after every step of the network."""

    on_step = staticmethod(lambda prompts: None)

    def __init__(self, pipe, requests, maps="both", keep="map"):
        """requests: one Request a prompt, of one model, size, number of steps and guidance."""
        name = type(pipe.scheduler).__name__
        if name != "DDIMScheduler":
            raise BadRequest("model", f"Schedules are searched for models that run DDIM, and this one runs {name}.")
        self.pipe, self.requests, self.maps, self.keep = pipe, requests, maps, keep
        self.first, self.network = requests[0], Network(pipe, requests)
        self.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        self.scheduler.set_timesteps(self.first.steps, device=pipe.device)

    def step(self, x, t):
        """One step of guided DDIM: (B, 4, h, w) -> the same."""
        out = self.network(x, t)
        self.on_step(len(x))
        return self.scheduler.step(out, t, x, return_dict=False)[0]

    def run(self, gamma, known=(), until=None, trace=None):
        """The Path of a schedule up to step `until`. What it shares with the nearest Path of `known` is not run again,
        but for one step: where it goes on by reusing, the map to reuse is made anew from the latents there."""
        near = max(known, key=lambda path: path.common(gamma), default=Path(gamma, [self.network.start]))
        begin = near.common(gamma)
        latents = near.latents[:begin + 1]
        todo = list(range(begin, until or len(gamma)))
        if todo and not gamma[begin]:
            todo.insert(0, attention_reuse.sources(gamma)[begin])
        context = context_of(self.pipe, self.first, len(gamma), tuple(self.network.start.shape[2:]), trace)
        knobs = attention_reuse.Knobs(maps=self.maps, keep=self.keep, schedule="".join(map(str, gamma)))
        with torch.no_grad(), attached(self.pipe, (knobs,), context):
            for step in todo:
                context.start(step)
                x = self.step(latents[step], self.scheduler.timesteps[step])
                if step >= begin:
                    latents.append(x)
        return Path(gamma, latents)

    def pictures(self, path):
        """PIL RGB pictures of a Path's result, decoded once."""
        if not path.pictures:
            path.pictures = pictures(self.pipe, path.latents[-1])
        return path.pictures


def mse(latents, reference):
    """Mean square error of each prompt: (B,)."""
    return (latents - reference).double().square().flatten(1).mean(1)


def closeness(sampler, path, reference, objective):
    """How close a Path's result is to the full model's, in dB, one figure a prompt. "psnr": of the decoded 8-bit
    picture, as the page tells it; "latent": -10 log10 of the latents' mean square error, which decodes nothing."""
    if objective == "latent":
        errors = mse(path.latents[-1], reference.latents[-1]).tolist()
        return [min(EQUAL, -10 * math.log10(max(error, 1e-30))) for error in errors]
    pairs = zip(sampler.pictures(reference), sampler.pictures(path))
    return [min(EQUAL, metrics.psnr(*pair)) for pair in pairs]
