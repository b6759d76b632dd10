"""Stage 3: the teacher, a text-conditional U-Net trained together with its text encoder.

Two kinds of batches. Windows: 16 x 16 latents cut out of scenes with one sticker, so that shapes are learnt at their
final scale at a fifth of the cost. Scenes: whole 32 x 32 latents, which teach how many things stand where. Training begins
with windows alone and ends with a mixture of both, in which windows are never very noisy: in pure noise every window
promises a sticker, and a model that believes that of every part of a scene draws its object twice.
"""

import json
import random
from functools import partial

import torch
from torch import nn

from . import autoencoder, parts, world
from .loop import DEVICE, SHIPPED, checkpoint, feed, quick, shipped, start_seed, train
from .muon import optimizers

WINDOW, WHOLE = 16, 32  # latent cells
EMPTY = 0.1  # share of captions dropped, for guidance
PAIRS = 0.7  # share of two stickers among whole scenes: windows teach the rest, and two are learnt last
ONWARD = "onward"  # in assets/stickers: weights trained further than the shipped ones
ASIDE = 0.3  # share of single stickers whose captions tell their side
LAYOUT = 0.7  # share of the timesteps, from the clean end, at which a noisy scene already shows what stands where
PLACE = 0.05  # weight of what the U-Net cannot tell of where it is
HORIZON = 300  # steps of the moving average
CLEAR = 0.65  # share of the timesteps, from the clean end, at which a noisy window still shows where its sticker is


class Teacher(nn.Module):
    """size: a key of parts.SIZES."""

    def __init__(self, size="small"):
        super().__init__()
        self.tokenizer = parts.tokenizer()
        self.text = parts.text_encoder(self.tokenizer)
        self.unet = parts.unet(**parts.SIZES[size])

    def forward(self, latents, t, tokens):
        """Noise estimate (B, 4, h, w) for noisy latents at timesteps t (B,) with captions tokens (B, 24)."""
        return self.unet(latents, t, self.text(tokens).last_hidden_state).sample


def size_of(weights):
    """The key of parts.SIZES that weights of a Teacher belong to."""
    width = weights["unet.conv_in.weight"].shape[0]
    return next(size for size, told in parts.SIZES.items() if told["widths"][0] == width)


def built(weights):
    """The Teacher with these weights."""
    model = Teacher(size_of(weights))
    model.load_state_dict(weights)
    return model


def stage(size):
    """What the checkpoint of a Teacher of this size is called."""
    return "teacher" if size == "small" else f"teacher-{size}"


def paint(seed, alone, batch=16):
    """Endless batches of rendered training scenes: pictures (B, 3, 256, 256) uint8, tokens (B, 24), and boxes (B, 4): x, y and
    side, in latent cells, of the only sticker, side 0 where there is none or two; and 1 where the caption tells where things
    stand. alone: two never stand there, and nothing tells where one does."""
    rng, tokenizer = random.Random(seed), parts.tokenizer()
    while True:
        scenes = [world.sample(rng, "train", rng.choices((0, 1), (4, 96))[0] if alone else None, 0 if alone else ASIDE)
                  for _ in range(batch)]
        yield painted(scenes, tokenizer)


def painted(scenes, tokenizer):
    """Pictures (B, 3, 256, 256) uint8, tokens and boxes of scenes, as `paint` gives them."""
    pictures = torch.stack([autoencoder.pixels(world.render(scene)) for scene in scenes])
    boxes = [[*([at // autoencoder.CELL for at in (s.x, s.y, s.full)] if len(scene.stickers) == 1 else [0, 0, 0]), world.said(scene)]
             for scene in scenes for s in scene.stickers[:1] or [None]]
    return ((pictures + 1) * 127.5).round().byte(), tokens_of(tokenizer, [s.caption for s in scenes]), torch.tensor(boxes)


def tokens_of(tokenizer, captions):
    """(B, 24) token ids."""
    return tokenizer(captions, padding="max_length", max_length=parts.LENGTH, truncation=True, return_tensors="pt").input_ids


class Scenes:
    """A growing store of encoded scenes: the oldest are replaced while training goes on."""

    def __init__(self, encoder, empty, room):
        """encoder: pictures in [-1, 1] -> latents; empty: the tokens (1, 24) of an empty caption; room: scenes kept."""
        self.encoder, self.empty, self.room, self.count = encoder, empty.to(DEVICE), room, 0
        self.latents = torch.empty(room, 4, WHOLE, WHOLE, dtype=torch.half, device=DEVICE)
        self.tokens = torch.empty(room, parts.LENGTH, dtype=torch.long, device=DEVICE)
        self.boxes = torch.empty(room, 4, dtype=torch.long, device=DEVICE)

    @torch.no_grad()
    def add(self, pictures, tokens, boxes):
        at = torch.arange(self.count, self.count + len(pictures)) % self.room
        self.latents[at] = self.encoder(pictures.to(DEVICE) / 127.5 - 1).half()
        self.tokens[at], self.boxes[at] = tokens.to(DEVICE), boxes.to(DEVICE)
        self.count += len(pictures)

    def places(self, size, cells):
        """(rows, y, x) of windows of `cells`, each y and x (size, cells); a window holds its scene's one sticker."""
        alone = self.boxes[:self.count, 2] > 0
        even = torch.where(alone, (1 - PAIRS) / alone.sum(), PAIRS / (~alone).sum())
        anywhere = (alone & (self.boxes[:self.count, 3] == 0)).float()  # a caption that tells a side is not true of a window
        rows = torch.multinomial(even if cells == WHOLE else anywhere, size, replacement=True)
        y, x = (corners(self.boxes[rows, axis], self.boxes[rows, 2], cells)[:, None] + torch.arange(cells, device=DEVICE)
                for axis in (1, 0))
        return rows, y, x

    def cut(self, rows, y, x):
        """(latents (size, 4, cells, cells), tokens (size, 24)) of windows."""
        dropped = torch.rand(len(rows), 1, device=DEVICE) < EMPTY
        latents = self.latents[rows[:, None, None], :, y[:, :, None], x[:, None, :]]  # (size, cells, cells, 4)
        return latents.permute(0, 3, 1, 2).float(), torch.where(dropped, self.empty, self.tokens[rows])

    def draw(self, size, cells):
        """What `cut` gives of windows at random places."""
        return self.cut(*self.places(size, cells))

    def draw_told(self, size):
        """What `cut` gives of whole scenes whose captions tell where things stand."""
        told = self.boxes[:self.count, 3]
        cells = torch.arange(WHOLE, device=DEVICE).expand(size, -1)
        return self.cut(torch.multinomial(told.float(), size, replacement=True), cells, cells)


def corners(at, side, cells):
    """A random first cell, on one axis, of windows of `cells` that hold a sticker of `side` cells at `at`: (B,)."""
    low, high = (at + side - cells).clamp(0, WHOLE - cells), at.clamp(max=WHOLE - cells)
    return low + (torch.rand(len(at), device=at.device) * (high - low + 1)).long()


def stream(scenes, painted, size, share, fresh, seed, layout=0.0):
    """Endless batches of `size` windows or, a `share` of them, size / 3 scenes; for each, `fresh` scenes on average are
    painted, encoded and added. Of the batches of scenes a share `layout` holds those whose captions tell where things stand, with
    LAYOUT as a third part: see noise_loss."""
    debt, rng = 0.0, random.Random(seed)
    while True:
        debt += fresh
        while debt > 0:
            batch = next(painted)
            scenes.add(*batch)
            debt -= len(batch[0])
        if rng.random() >= share:
            yield scenes.draw(size, WINDOW)
        elif rng.random() < layout:
            yield *scenes.draw_told(size // 3), LAYOUT
        else:
            yield scenes.draw(size // 3, WHOLE)


def watched(unet):
    """A list that holds, after each call of the U-Net, what its residual blocks before cross-attention give where it decodes the
    middle resolution, (B, channels, h, w) each: empty it before the next call."""
    seen = []
    for block in unet.up_blocks[1].resnets:
        block.register_forward_hook(lambda module, told, given: seen.append(given))
    return seen


def misplaced(features):
    """Mean square error of a place, x and y in -1..1, as a fixed random direction in the channels (B, C, h, w) tells it."""
    height, width = features.shape[2:]
    y, x = torch.meshgrid(torch.linspace(-1, 1, height, device=features.device), torch.linspace(-1, 1, width, device=features.device), indexing="ij")
    reads = torch.randn(2, features.shape[1], generator=torch.Generator().manual_seed(1)).to(features.device) / features.shape[1] ** 0.5
    return (torch.einsum("bchw,kc->bkhw", features.float(), reads) - torch.stack((x, y))).square().mean()


def emphasis(alphas):
    """Weight of the noise's error at each timestep: min-SNR (gamma 5; Hang et al., arXiv 2303.09556, eq. 8), raised where noise is
    high: there the caption decides what will stand in the picture, and the plain loss hardly sees it."""
    snr = alphas / (1 - alphas)
    return snr.clamp(max=5) / snr * (0.3 / snr).sqrt().clamp(1, 4)


def noise_loss(alphas, clear, seen=None):
    """Noise-prediction loss with the weights of `emphasis`.
    clear: the share of the timesteps, from the clean end, that windows are trained at. A batch's third part is the share of the
    timesteps, from the clean end, that it is not trained at; its errors are those of the clean latents, because which of two
    objects stands where moves little of them, and only where noise hides both. seen: of `watched`; these batches then also teach
    the U-Net to tell left from right of itself, which no picture asks for before words for it are understood, nor the words before."""
    weight, snr = emphasis(alphas), alphas / (1 - alphas)

    def loss(model, batch):
        latents, tokens, *noisiest = batch
        count, weights = len(latents), weight
        even = (torch.arange(count, device=latents.device) + torch.rand(1, device=latents.device)) / count
        if noisiest:
            share, weights = noisiest[0] + (1 - noisiest[0]) * even, 0.15 / snr
        else:
            share = even ** 0.6 if latents.shape[-1] == WHOLE else even * clear  # scenes: more noise
        t = (share * len(alphas)).long().clamp(max=len(alphas) - 1)  # a share just below 1 may be rounded up to it
        noise, a = torch.randn_like(latents), alphas[t][:, None, None, None]
        if seen is not None:
            seen.clear()
        error = (model(a.sqrt() * latents + (1 - a).sqrt() * noise, t, tokens).float() - noise).pow(2).mean((1, 2, 3))
        place = sum(map(misplaced, seen)) if noisiest and seen else 0.0
        plain = error.detach()
        return (weights[t] * error).mean() + PLACE * place, {
            "low": plain[:count // 2].mean(), "high": plain[count // 2:].mean(), "place": place}

    return loss


def committed():
    """The committed half-precision weights, with the step, hours and log of their training; None when there are none."""
    parts = {name: shipped("model", part) for name, part in (("text", "text_encoder"), ("unet", "unet"))}
    if None in parts.values():
        return None
    weights = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
    return {"weights": weights, **json.loads((SHIPPED / "training.json").read_text())}


def latest(size="small"):
    """What training of a teacher of that size goes on from on a machine without a checkpoint: what was kept of it, else what is
    committed; None where both are of another size."""
    kept = shipped(ONWARD)
    if kept and size_of(kept) == size:
        return {"weights": kept, **json.loads((SHIPPED / ONWARD / "training.json").read_text())}
    told = committed()
    return told if told and size_of(told["weights"]) == size else None


def trained(size="small"):
    """The teacher of that size (the moving average of its checkpoint, else the latest weights), in eval mode on the CPU, with
    its step, hours and log. Ends the program with a sentence when there is none."""
    if (saved := checkpoint(stage(size)) or latest(size)) is None:
        raise SystemExit(f"No {size} teacher was trained: `python -m fastviz.stickers teacher --network {size}` does.")
    model = built(saved.get("average") or saved["weights"])
    return model.eval().requires_grad_(False), {key: saved[key] for key in ("step", "hours", "log")}


def fit(minutes, size, lr, share=0.0, fresh=2.0, room=12_000, decay=0.25, anew=False, network="small", layout=0.0):
    """Goes on from the checkpoint or, without one, from the latest weights unless `anew`, with a `share` of scenes among the
    batches, see stream for their `layout`. network: a key of parts.SIZES; fresh: new scenes per batch; room: scenes kept; size:
    windows per batch; decay: see loop.train."""
    start, name = None if anew else latest(network), stage(network)
    seed = start_seed(name, 2, start)
    model = Teacher(network).to(DEVICE)
    seen = watched(model.unet) if layout else None  # before it is compiled
    quick(model.unet, minutes)
    scenes = Scenes(autoencoder.trained().encoder.to(DEVICE), tokens_of(model.tokenizer, [""]), room)
    painted = feed(partial(paint, alone=share == 0), seed)
    while scenes.count < min(room, 20 * size):
        scenes.add(*next(painted))
    return train(name, model, stream(scenes, painted, size, share, fresh, seed, layout),
                 noise_loss(parts.scheduler().alphas_cumprod.to(DEVICE), CLEAR if share else 1.0, seen), minutes, lr,
                 optimizers=optimizers(model, lr), horizon=HORIZON, decay=decay, report_every=60, start=start)
