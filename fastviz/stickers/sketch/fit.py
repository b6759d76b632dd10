"""Training of the network that reads a sketch, with the frozen teacher: the ordinary loss on the noise, nothing else.

Windows of scenes with one sticker teach how a line becomes a rim, at a fifth of the cost; whole scenes teach where.
"""

import random

import torch

from ... import sketch
from .. import autoencoder, parts, teacher, world
from ..loop import DEVICE, feed, quick, shipped, start_seed, train
from ..muon import optimizers
from ..sdxs import chain
from . import network

SHARE = 0.4  # of whole scenes among the batches
HELD_OUT = 16  # scenes that the reports measure on


def name():
    """What the checkpoint is called: it belongs to one teacher."""
    return f"sketch-{chain.digest()[:8]}"


class Drawn(teacher.Scenes):
    """A growing store of encoded scenes with their sketches."""

    def __init__(self, encoder, empty, room):
        super().__init__(encoder, empty, room)
        self.sketches = torch.empty(room, world.SIZE, world.SIZE, dtype=torch.uint8, device=DEVICE)

    def add(self, pictures, tokens, boxes, sketches):
        self.sketches[torch.arange(self.count, self.count + len(sketches)) % self.room] = sketches.to(DEVICE)
        super().add(pictures, tokens, boxes)

    def cut(self, rows, y, x):
        """(latents, (tokens, sketches of the same windows))"""
        latents, tokens = super().cut(rows, y, x)
        y, x = ((cells[:, :1] * autoencoder.CELL + torch.arange(cells.shape[1] * autoencoder.CELL, device=DEVICE)) for cells in (y, x))
        return latents, (tokens, self.sketches[rows[:, None, None], y[:, :, None], x[:, None, :]])


def paint(seed, batch=8):
    """Endless batches as teacher.paint's, with the sketches: what Drawn.add takes."""
    rng, tokenizer = random.Random(seed), parts.tokenizer()
    while True:
        scenes = [world.sample(rng) for _ in range(batch)]
        yield *teacher.painted(scenes, tokenizer), network.drawings(scenes)


def loss_of(guide):
    """loss(control, (latents, (tokens, sketches))) for loop.train."""
    noise_loss = teacher.noise_loss(chain.alphas(), 1.0)

    def loss(control, batch):
        def estimate(x, t, told):
            return network.estimate(guide.unet, control, x, t, chain.embedded(guide, told[0]), told[1])

        return noise_loss(estimate, batch)

    return loss


def report_of(guide, encoder):
    """report(control) -> {"with", "without"}: mean squared error of the noise estimate on held-out scenes, in the noisier half
    of the timesteps, with the sketch and without it."""
    rng = random.Random(20_000_003)
    scenes = [world.sample(rng, "heldout", rng.choice((1, 2))) for _ in range(HELD_OUT)]
    pictures, tokens, _ = teacher.painted(scenes, guide.tokenizer)
    sketches, a, t = network.drawings(scenes).to(DEVICE), chain.alphas(), torch.linspace(500, 980, HELD_OUT, device=DEVICE).long()
    noise = torch.randn(HELD_OUT, 4, 32, 32, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    with torch.no_grad():
        latents, text = encoder(pictures.to(DEVICE) / 127.5 - 1), chain.embedded(guide, tokens)
        a = a[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * latents + (1 - a).sqrt() * noise

    @torch.no_grad()
    def report(control):
        plain = guide.unet.forward  # what is compiled would be compiled again for this batch
        found = {name: (network.estimate(plain, control, noisy, t, text, given) - noise).pow(2).mean()
                 for name, given in (("with", sketches), ("without", None))}
        return {name: round(float(error), 5) for name, error in found.items()}

    return report


def begun(unet):
    """The network before its first step: as it is committed for an earlier teacher of the same size, which this one goes on
    from, or with the teacher's convolutions alone."""
    control, kept = network.untrained(unet), shipped("sketch") or {}
    if {name: weight.shape for name, weight in kept.items()} == {name: weight.shape for name, weight in control.state_dict().items()}:
        control.load_state_dict(kept)
    return control


def committed(unet):
    """The committed network for the teacher's `unet`, frozen, on the training device. NotYet where none belongs to these weights."""
    if sketch.missing(chain.MODEL.folder):
        raise chain.NotYet("No network for sketches lies beside the committed teacher: run `python -m fastviz.stickers sketch`, then `export-sketch` first.")
    control = network.untrained(unet)
    control.load_state_dict(shipped("sketch"))
    return chain.frozen(control)


def fit(minutes, size, lr, fresh=2.0, room=6000):
    """Goes on from the checkpoint or, without one, from what `begun` gives. size: windows per batch."""
    seed, guide = start_seed(name(), 15), chain.committed_teacher(minutes)
    encoder = chain.small_autoencoder().encoder
    control = quick(begun(guide.unet), minutes)
    store, painted = Drawn(encoder, teacher.tokens_of(guide.tokenizer, [""]), room), feed(paint, seed)
    while store.count < 10 * size:
        store.add(*next(painted))
    batches = teacher.stream(store, painted, size, SHARE, fresh, seed)
    return train(name(), control, batches, loss_of(guide), minutes, lr, horizon=300,
                 optimizers=optimizers(control, lr), report=report_of(guide, encoder), report_every=120)
