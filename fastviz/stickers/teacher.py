"""Stage 3: the teacher, a text-conditional U-Net trained together with its text encoder.

Two kinds of batches. `window`: 16 x 16 latents cut out of scenes with one sticker, so that shapes are learnt at their
final scale at a fifth of the cost. `scene`: whole 32 x 32 latents, which teach where things stand. A run begins with
windows and ends with scenes.
"""

import random

import torch
import torch.nn.functional as F
from torch import nn

from . import autoencoder, parts, world
from .loop import WORK, train
from .muon import Muon

WINDOW, WHOLE = 16, 32  # latent cells
EMPTY = 0.1  # share of captions dropped, for guidance


class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokenizer = parts.tokenizer()
        self.text = parts.text_encoder(self.tokenizer)
        self.unet = parts.unet()

    def forward(self, latents, t, tokens):
        """Noise estimate (B, 4, h, w) for noisy latents at timesteps t (B,) with captions tokens (B, 24)."""
        return self.unet(latents, t, self.text(tokens).last_hidden_state).sample


class Scenes:
    """A growing store of encoded scenes: the oldest are replaced while training goes on."""

    def __init__(self, encoder, tokenizer, seed, room=12_000, alone=True):
        self.encoder, self.tokenizer = encoder, tokenizer
        self.rng, self.room, self.alone = random.Random(seed), room, alone
        self.latents = torch.empty(room, 4, WHOLE, WHOLE, dtype=torch.half)
        self.tokens = torch.empty(room, parts.LENGTH, dtype=torch.int16)
        self.boxes = torch.empty(room, 3, dtype=torch.int16)  # x, y, cells of the only sticker; cells 0: none
        self.count = 0

    @torch.no_grad()
    def grow(self, number):
        """Adds `number` scenes of the training split."""
        scenes = [world.sample(self.rng, "train", self.rng.choices((0, 1), (4, 96))[0] if self.alone else None)
                  for _ in range(number)]
        pictures = torch.stack([autoencoder.pixels(world.render(scene)) for scene in scenes])
        latents = self.encoder.encode(pictures).latents
        for i, scene in enumerate(scenes):
            at = self.count % self.room
            self.latents[at] = latents[i].half()
            self.tokens[at] = torch.tensor(self.ids(scene.caption), dtype=torch.int16)
            s = scene.stickers[0] if len(scene.stickers) == 1 else None
            self.boxes[at] = torch.tensor([s.x // 8, s.y // 8, s.full // 8] if s else [0, 0, 0], dtype=torch.int16)
            self.count += 1

    def ids(self, caption):
        return self.tokenizer(caption, padding="max_length", max_length=parts.LENGTH, truncation=True).input_ids

    def draw(self, size, cells):
        """(latents (size, 4, cells, cells), tokens (size, 24)); a window holds the whole sticker."""
        rows = torch.tensor(self.rng.sample(range(min(self.count, self.room)), size))
        tokens = self.tokens[rows].long()
        empty = torch.tensor(self.ids(""))
        for i in range(size):
            if self.rng.random() < EMPTY:
                tokens[i] = empty
        latents = self.latents[rows].float()
        if cells < WHOLE:
            latents = torch.stack([self._cut(z, box, cells) for z, box in zip(latents, self.boxes[rows].tolist())])
        return latents, tokens

    def _cut(self, latents, box, cells):
        x, y, side = box
        corner = [self.rng.randint(max(0, at + side - cells), min(at, WHOLE - cells)) if side else
                  self.rng.randint(0, WHOLE - cells) for at in (x, y)]
        return latents[:, corner[1]:corner[1] + cells, corner[0]:corner[0] + cells]


def stream(scenes, size, cells, fresh):
    """Endless batches; `fresh` new scenes are encoded for every batch."""
    debt = 0.0
    while True:
        debt += fresh
        if debt >= 8:
            scenes.grow(int(debt))
            debt -= int(debt)
        yield scenes.draw(size, cells)


def noise_loss(alphas):
    """Noise-prediction loss with min-SNR weights (gamma 5; Hang et al., arXiv 2303.09556, eq. 8), raised where noise is
    high: there the caption decides what will stand in the picture, and the plain loss hardly sees it."""
    snr = alphas / (1 - alphas)
    weight = snr.clamp(max=5) / snr * (0.3 / snr).sqrt().clamp(1, 4)

    def loss(model, batch):
        latents, tokens = batch
        t = ((torch.arange(len(latents)) + torch.rand(1)) / len(latents) * len(alphas)).long()  # stratified
        noise = torch.randn_like(latents)
        a = alphas[t][:, None, None, None]
        out = model(a.sqrt() * latents + (1 - a).sqrt() * noise, t, tokens)
        error = (out - noise).pow(2).mean((1, 2, 3))
        low, high = error[t < 500].detach(), error[t >= 500].detach()
        return (weight[t] * error).mean(), {"low": float(low.mean()), "high": float(high.mean())}

    return loss


def optimizers(model, lr):
    """Muon for the matrices inside, AdamW for embeddings, norms, biases and the first and last convolution."""
    inner, outer = [], []
    for name, p in model.named_parameters():
        edge = "embedding" in name and "time_embedding" not in name or "conv_in" in name or "conv_out" in name
        (outer if p.ndim < 2 or edge else inner).append(p)
    return [Muon(inner, lr=lr), torch.optim.AdamW(outer, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)]


def trained():
    """The moving average of the teacher's checkpoint, in eval mode, with its step, hours and log."""
    saved = torch.load(WORK / "teacher.pt", weights_only=True)
    model = Teacher()
    model.load_state_dict(saved["average"])
    return model.eval().requires_grad_(False), {key: saved[key] for key in ("step", "hours", "log")}


def fit(minutes, cells=WINDOW, size=32, lr=2e-3, fresh=2, seed=2):
    """Continues from the checkpoint when there is one; a stage with other `cells` starts from its weights."""
    torch.manual_seed(seed)
    model = Teacher()
    scenes = Scenes(autoencoder.trained(), model.tokenizer, seed, alone=cells == WINDOW)
    for _ in range(40):
        scenes.grow(16)
    model.unet.to(memory_format=torch.channels_last)
    return train("teacher", model, stream(scenes, size, cells, fresh), noise_loss(parts.scheduler().alphas_cumprod), minutes, lr,
                 optimizers=optimizers(model, lr), horizon=300, report_every=60)
