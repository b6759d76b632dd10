"""Pairs of noise and finished latents of the guided teacher: what one step has to do at once.

Pair i comes from seed SEED + i alone, its caption and its noise; only the latents are kept, in training/, where they can
be deleted and made again. Drawn pairs also follow the sketch of the scene that has the caption. Solver: DPM-Solver++ 2M, arXiv 2211.01095, algorithm 2, with classifier-free guidance, so that
the student needs none.
"""

import time

import torch

from ...methods import few_step
from .. import parts
from .. import loop
from ..loop import DEVICE, autocast
from ..sketch import fit as sketch
from ..sketch.network import drawings, following
from . import chain

SEED = 90_000_049
SAVE = 60  # seconds between two times that pairs are written


def noise_of(seeds, side=32):
    """(B, 4, side, side) of deviation 1, drawn on the CPU, so equal on every device."""
    draws = [torch.randn(4, side, side, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws).to(DEVICE)


@torch.no_grad()
def guided(unet, x, t, text, empty, guidance):
    """The guided estimate of the noise, in single precision. t: (B,); text, empty: (B, 24, D)."""
    without, given = unet(torch.cat([x, x]), torch.cat([t, t]), torch.cat([empty, text])).sample.float().chunk(2)
    return without + guidance * (given - without)


def empty_like(guide, text):
    """The empty caption, embedded, for each caption in text (B, 24, D)."""
    return chain.embedded(guide, chain.tokens_of(guide, [""])).expand_as(text)


@torch.no_grad()
def finished(guide, x, text, steps, guidance, unet=None, begin=None):
    """The teacher's latents after `steps` steps from x: noise or, with `begin`, latents as noisy as at that timestep. unet: what is
    asked in place of the teacher's own."""
    scheduler = few_step.scheduler("dpm", parts.scheduler().config)
    if begin is None:
        scheduler.set_timesteps(steps, device=x.device)
    else:
        scheduler.set_timesteps(timesteps=[round(begin * left / steps) for left in range(steps, 0, -1)], device=x.device)
    empty = empty_like(guide, text)
    for t in scheduler.timesteps:
        with autocast():
            estimate = guided(unet or guide.unet, x, t.expand(len(x)), text, empty, guidance)
        x = scheduler.step(estimate, t, x).prev_sample
    return x


def path(drawn=False):
    return loop.WORK / f"student-{'drawn-' * drawn}pairs-{chain.digest()[:8]}.pt"


def saved(steps=None, guidance=None, drawn=False):
    """{"latents" (n, 4, 32, 32) half, "steps", "guidance"} as far as they were made; None when there are none. With steps
    and guidance: NotYet when they were made with others."""
    if not path(drawn).exists():
        return None
    told = torch.load(path(drawn), weights_only=True)
    if steps and (told["steps"], told["guidance"]) != (steps, guidance):
        raise chain.NotYet(f"{path(drawn)} holds pairs of {told['steps']} steps and guidance {told['guidance']:g}: ask for the same, or delete it.")
    return told


def save(latents, steps, guidance, drawn=False):
    loop.WORK.mkdir(parents=True, exist_ok=True)
    part = path(drawn).with_suffix(".part")
    torch.save({"latents": latents, "steps": steps, "guidance": guidance}, part)
    part.replace(path(drawn))


def make(minutes, size, steps, guidance, most, drawn=False):
    """Adds pairs for `minutes`, or until there are `most`; saved once a minute. Returns how many there are."""
    told, guide, start = saved(steps, guidance, drawn), chain.committed_teacher(minutes), time.time()
    control = sketch.committed(guide.unet) if drawn else None
    found, kept = [told["latents"]] if told else [], time.time()
    count = sum(map(len, found))
    while time.time() - start < 60 * minutes and count < most:
        seeds = range(SEED + count, SEED + min(most, count + size))
        scenes = chain.scenes(seeds)
        text = chain.embedded(guide, chain.tokens_of(guide, [scene.caption for scene in scenes]))
        unet = following(guide.unet, control, drawings(scenes).to(DEVICE)) if drawn else None
        found.append(finished(guide, noise_of(seeds), text, steps, guidance, unet).half().cpu())
        count += len(seeds)
        if time.time() - kept > SAVE:
            save(torch.cat(found), steps, guidance, drawn)
            kept = time.time()
            print(f"pairs: {count}, mean {float(found[-1].float().mean()):.4f}, deviation {float(found[-1].float().std()):.4f}, "
                  f"{(kept - start) / 60:.1f} min", flush=True)
    if found:
        save(torch.cat(found), steps, guidance, drawn)
    return count


class Pairs:
    """Drawn from at random: the noise, the captions and the sketches are made again from their seeds."""

    def __init__(self, guide, drawn=False):
        """NotYet when no pairs were made."""
        if (told := saved(drawn=drawn)) is None:
            command = f"pairs{' --drawn' * drawn}"
            raise chain.NotYet(f"There are no such pairs of the committed teacher: run `python -m fastviz.stickers {command}` first.")
        self.latents, self.guidance = told["latents"], told["guidance"]
        self.scenes = chain.scenes(range(SEED, SEED + len(self.latents)))
        self.tokens = chain.tokens_of(guide, [scene.caption for scene in self.scenes])

    def draw(self, size):
        """(noise (size, 4, 32, 32), tokens (size, 24), latents (size, 4, 32, 32)), on the training device."""
        return self.of(torch.randint(len(self.latents), (size,)))

    def of(self, rows):
        noise = noise_of((rows + SEED).tolist(), self.latents.shape[-1])
        return noise, self.tokens[rows.to(DEVICE)], self.latents[rows].to(DEVICE).float()

    def sketched(self, size):
        """The same, and the sketches (size, 256, 256) uint8, of pairs that follow them."""
        rows = torch.randint(len(self.latents), (size,))
        return *self.of(rows), drawings([self.scenes[row] for row in rows.tolist()]).to(DEVICE)
