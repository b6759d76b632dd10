"""What a run is aiming at, shown while it goes: a small picture every now and then, decoded between two timed steps.

A deterministic solver moves in nearly straight lines from noise to picture, once latents are divided by their signal. Where
the line of one step meets noise level 0 is the picture that this step aims at: with DDIM exactly the network's estimate.
"""

import time

import torch
import torch.nn.functional as F

EVERY = 1.5  # seconds between two looks: a look costs about what a step does


def aim(scheduler, before, after, step):
    """The latents at noise level 0 on the line of step `step`, from those `before` and `after` it. After the last one: its own."""
    from .schedulers import alphas_of  # diffusers, which must not be imported before torchvision was looked at

    times = [int(t) for t in scheduler.timesteps[step:step + 2]]
    if len(times) < 2:
        return after
    now, then = (((1 - alpha) / alpha) ** 0.5 for alpha in alphas_of(scheduler.config, times)[:2])
    grown = scheduler.init_noise_sigma > 1.5  # latents that are not scaled down as noise is added
    start, end = (x.float() * (1 if grown else (1 + level * level) ** 0.5) for x, level in ((before, now), (after, then)))
    return end - then * (end - start) / (then - now)


class Glimpses:
    """Calls show(picture) with what a run aims at, half as large as its picture, at most once in EVERY seconds. Only on a
    CPU: a GPU would have to be waited for, and would then start the next timed step from idle. decoding: the pipeline that
    decodes, of `sdxs.previewing`, loaded before the run, whose peak memory must not hold it; without it the one that runs."""

    def __init__(self, show, decoding=None):
        self.show, self.decoding, self.at = show, decoding, time.time()

    @torch.no_grad()
    def __call__(self, pipe, before, after, step):
        if pipe.device.type != "cpu" or time.time() - self.at < EVERY:
            return
        decoding = self.decoding or pipe
        small = F.avg_pool2d(aim(pipe.scheduler, before, after, step), 2).to(decoding.vae.dtype)
        picture = decoding.vae.decode(small / decoding.vae.config.scaling_factor, return_dict=False)[0]
        self.show(pipe.image_processor.postprocess(picture, output_type="pil")[0])
        self.at = time.time()
