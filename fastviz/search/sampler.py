"""Batches of prompts through a reuse schedule, from the first step on that an earlier run does not share."""

import math
from dataclasses import dataclass

import torch

from .. import metrics
from ..methods import attached, attention_reuse
from ..request import BadRequest
from ..run import guided, noise
from ..trace import Context

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
        self.first, self.pair = requests[0], guided(pipe, requests[0])
        self.start = torch.cat([noise(pipe, request) for request in requests]).to(pipe.device)
        with torch.no_grad():
            prompt, negative = pipe.encode_prompt([request.prompt for request in requests], pipe.device, 1, self.pair)
        self.text = torch.cat([negative, prompt]) if self.pair else prompt
        self.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        self.scheduler.set_timesteps(self.first.steps, device=pipe.device)

    def step(self, unet, x, t):
        """One step of guided DDIM: (B, 4, h, w) -> the same."""
        out = unet(torch.cat([x] * 2) if self.pair else x, t, encoder_hidden_states=self.text, return_dict=False)[0]
        if self.pair:
            without, given = out.chunk(2)
            out = without + self.first.guidance * (given - without)
        self.on_step(len(x))
        return self.scheduler.step(out, t, x, return_dict=False)[0]

    def run(self, gamma, known=(), until=None, trace=None):
        """The Path of a schedule up to step `until`. What it shares with the nearest Path of `known` is not run again,
        but for one step: where it goes on by reusing, the map to reuse is made anew from the latents there."""
        near = max(known, key=lambda path: path.common(gamma), default=Path(gamma, [self.start]))
        begin = near.common(gamma)
        latents = near.latents[:begin + 1]
        todo = list(range(begin, until or len(gamma)))
        if todo and not gamma[begin]:
            todo.insert(0, attention_reuse.sources(gamma)[begin])
        context = Context(len(gamma), self.first.seed, tuple(self.start.shape[2:]), trace=trace)
        knobs = attention_reuse.Knobs(maps=self.maps, keep=self.keep, schedule="".join(map(str, gamma)))
        with torch.no_grad(), attached(self.pipe, (knobs,), context) as ready:
            for context.step in todo:
                x = self.step(ready.unet, latents[context.step], self.scheduler.timesteps[context.step])
                if context.step >= begin:
                    latents.append(x)
        return Path(gamma, latents)

    @torch.no_grad()
    def pictures(self, path):
        """PIL RGB pictures of a Path's result, decoded once."""
        if not path.pictures:
            latents = path.latents[-1] / self.pipe.vae.config.scaling_factor
            decoded = self.pipe.vae.decode(latents, return_dict=False)[0]
            path.pictures = self.pipe.image_processor.postprocess(decoded, output_type="pil")
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
