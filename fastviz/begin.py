"""Where a run begins: at pure noise, or at a noisy picture, as in SDEdit, Meng et al., arXiv 2108.01073, section 3.

With a picture the steps asked for are all taken, on the last part of the way: strength 0.5 and 50 steps are the later half of
100. So rows do as much work as without one, and every method's step i is still one of the steps that were asked for.
"""

import inspect
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image

from . import given
from .patch import Refused, replaced


@torch.no_grad()
def encoded(pipe, picture, size):
    """The latents (1, 4, h, w) of a picture, bytes as given.start gives them, by the model's own encoder."""
    image = given.picture(picture).resize((size, size), Image.LANCZOS)
    pixels = torch.from_numpy(np.asarray(image, np.float32).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    found = pipe.vae.encode(pixels.to(pipe.device, pipe.vae.dtype))
    latents = found.latents if hasattr(found, "latents") else found.latent_dist.mode()
    return latents * pipe.vae.config.scaling_factor


def late(scheduler, steps, strength):
    """scheduler.set_timesteps that keeps only the last `steps` of as many as make them the share `strength` of the way. One
    step is no share of several: where the scheduler takes timesteps from outside, it is given the one that is meant."""
    own, train = scheduler.set_timesteps, scheduler.config.num_train_timesteps
    alone = steps == 1 and "timesteps" in inspect.signature(own).parameters

    def set_timesteps(num_inference_steps=None, device=None):
        if alone:
            own(timesteps=[max(0, round(train * strength) - 1)], device=device)
            return
        total = min(train, max(steps, round(steps / strength)))
        own(total, device=device)
        last = slice(total - steps, total)  # some totals, 61 for one, give a timestep -1 after the last
        scheduler.timesteps = scheduler.timesteps[last]
        if getattr(scheduler, "sigmas", None) is not None:
            scheduler.sigmas = torch.cat([scheduler.sigmas[last], scheduler.sigmas[-1:]])

    return set_timesteps


@contextmanager
def attach(pipe, request, steps, noise, clean):
    """Modifications where there is a picture, or where diffusers' rounding gives one step too many (61 of 1000):
     - set_timesteps of pipe.scheduler
    Yields the latents that the pipeline is to be called with. clean: from `encoded`, or None. Refused for a scheduler whose
    run can only begin at pure noise."""
    scheduler = pipe.scheduler
    if clean is None:
        scheduler.set_timesteps(steps)
        fits = len(scheduler.timesteps) == steps
        with replaced(scheduler, **{} if fits else {"set_timesteps": late(scheduler, steps, 1.0)}):
            yield noise
        return
    if not hasattr(scheduler, "add_noise"):
        raise Refused("A fitted schedule begins at pure noise and cannot start from a picture: leave this row or the picture out.")
    with replaced(scheduler, set_timesteps=late(scheduler, steps, request.strength)):
        scheduler.set_timesteps(steps)
        noisy = scheduler.add_noise(clean.float().cpu(), noise.float().cpu(), scheduler.timesteps[:1])
        yield (noisy / scheduler.init_noise_sigma).to(noise)  # the pipeline multiplies by it
