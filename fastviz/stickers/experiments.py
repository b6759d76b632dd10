"""Stage 3e: what the field knows to help small models, one thing at a time: a teacher from random weights for each, all with
the same minutes on the same machine, told by what they lose on the same held-out scenes. On a CPU these are minutes of its
time, in which no other program counts.

Short trainings tell what learns fast, not what ends best; the first row is trained twice, and what lies between these two
is chance. Every row is kept as soon as it is measured; the same command goes on with those that are missing.
"""

import json
import random
import tempfile
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from ..compare import device_name
from ..patch import replaced
from . import autoencoder, card, evaluate, heeded, loop, parts, teacher, world

FILE = evaluate.FOLDER / "experiments.json"
TIMESTEPS = (100, 400, 700, 950)
SCENES, HEEDED = 64, 32  # held out, of one object and of two alike often; of those that tell what is heeded
AS_IT_IS = "as it is trained"
LR, SIZE, SHARE = 2e-3, 24, 0.5  # of whole scenes


def lowest(made=parts.unet, **told):
    """parts.unet with a transformer block of one layer at the lowest resolution and in the middle too."""
    config = dict(made(**told).config) | dict(
        down_block_types=("CrossAttnDownBlock2D",) * 3, mid_block_type="UNetMidBlock2DCrossAttn", up_block_types=("CrossAttnUpBlock2D",) * 3)
    return UNet2DConditionModel.from_config(config)


class Registers(teacher.Teacher):
    """Beside the words, the U-Net reads a few vectors that are the same for every caption. Darcet et al., arXiv 2309.16588."""

    def __init__(self, size="small", count=4):
        super().__init__(size)
        self.registers = nn.Parameter(torch.randn(1, count, self.text.config.hidden_size))

    def forward(self, latents, t, tokens):
        words = self.text(tokens).last_hidden_state
        return self.unet(latents, t, torch.cat([words, self.registers.expand(len(words), -1, -1)], 1)).sample


def adamw(model, lr):
    return [torch.optim.AdamW(model.parameters(), lr=lr / 2, betas=(0.9, 0.99), weight_decay=0.01)]


def min_snr(alphas):
    """gamma 5, as Hang et al. have it."""
    snr = alphas / (1 - alphas)
    return snr.clamp(max=5) / snr


def other_seed(name, seed, start=None):
    return loop.start_seed(name, seed + 1000, start)


def seen_decoded(weight=0.02):
    """teacher.noise_loss, and the error of what a second network, the autoencoder's encoder, sees of the decoded estimate halfway."""
    vae, plain = autoencoder.trained().to(loop.DEVICE), teacher.noise_loss

    def features(latents):
        return vae.encoder.layers[:8](vae.decoder(latents).add(1).div(2))

    def made(alphas, clear, seen=None):
        noise_only = plain(alphas, clear, seen)

        def loss(model, batch):
            value, told = noise_only(model, batch)
            latents, tokens = (part[:2] for part in batch[:2])
            t = torch.randint(50, 500, (len(latents),), device=latents.device)  # later, an estimate is a blur of all that may come
            noise, a = torch.randn_like(latents), alphas[t][:, None, None, None]
            estimate = (a.sqrt() * latents + (1 - a).sqrt() * noise - (1 - a).sqrt() * model(a.sqrt() * latents + (1 - a).sqrt() * noise, t, tokens)) / a.sqrt()
            return value + weight * (features(estimate) - features(latents)).square().mean(), told

        return loss

    return made


VARIANTS = {  # name -> (() -> [(module, {attribute: value})], options of teacher.fit)
    AS_IT_IS: (lambda: [], {}),
    "the same, other seed": (lambda: [(teacher, dict(start_seed=other_seed))], {}),
    "AdamW instead of Muon": (lambda: [(teacher, dict(optimizers=adamw))], {}),
    "weights: the noise's error as it is": (lambda: [(teacher, dict(emphasis=torch.ones_like))], {}),
    "weights: min-SNR, not raised at high noise": (lambda: [(teacher, dict(emphasis=min_snr))], {}),
    "no caption dropped": (lambda: [(teacher, dict(EMPTY=0.0))], {}),
    "a fifth of the captions dropped": (lambda: [(teacher, dict(EMPTY=0.2))], {}),
    "text encoder of one layer": (lambda: [(parts, dict(text_encoder=partial(parts.text_encoder, layers=1)))], {}),
    "text encoder of six layers": (lambda: [(parts, dict(text_encoder=partial(parts.text_encoder, layers=6)))], {}),
    "four registers beside the words": (lambda: [(teacher, dict(Teacher=Registers))], {}),
    "attention at the lowest resolution": (lambda: [(parts, dict(unet=lowest))], {}),
    "half the batch": (lambda: [], {"size": SIZE // 2}),
    "twice the batch": (lambda: [], {"size": 2 * SIZE}),
    "moving average of 100 steps": (lambda: [(teacher, dict(HORIZON=100))], {}),
    "moving average of 1000 steps": (lambda: [(teacher, dict(HORIZON=1000))], {}),
    "whole scenes alone": (lambda: [], {"share": 1.0}),
    "windows for half of the time, then scenes": (lambda: [], {"then": 1.0, "share": 0.0}),
    "features of the decoded picture": (lambda: [(teacher, dict(noise_loss=seen_decoded()))], {}),
}


def worked():
    """Seconds that this process has worked for, per thread."""
    return time.process_time() / torch.get_num_threads()


@contextmanager
def changed(name):
    """What a variant changes, for the duration of a with block; training writes its checkpoints where nobody looks."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as exits:
        exits.enter_context(replaced(loop, WORK=Path(folder), clock=loop.clock if loop.CUDA else worked))
        for module, values in VARIANTS[name][0]():
            exits.enter_context(replaced(module, **values))
        yield


def trained(name, minutes):
    """(the teacher of a variant after `minutes`, its steps)"""
    options = {"share": SHARE, "size": SIZE} | VARIANTS[name][1]
    with changed(name):
        shares = [options["share"], *([options["then"]] if "then" in options else [])]
        for share in shares:  # the second goes on from the checkpoint of the first
            average, log = teacher.fit(minutes / len(shares), options["size"], LR, share, anew=True)
        model = teacher.Teacher()  # not compiled: it will be asked other shapes
        model.load_state_dict(average.state_dict())
        return model.eval().requires_grad_(False), log[-1]["step"]


@torch.no_grad()
def losses(model, split="heldout", timesteps=TIMESTEPS, count=SCENES, seed=20_000_003):
    """{timestep: mean square error of the noise estimate} on `count` scenes of one object and of two. split: of world.sample."""
    rng, alphas = random.Random(seed), parts.scheduler().alphas_cumprod
    pictures, tokens, _ = teacher.painted([world.sample(rng, split, 1 + i % 2) for i in range(count)], model.tokenizer)
    latents = autoencoder.trained().encoder(pictures / 127.5 - 1)
    noise, found = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)), {}
    for t in timesteps:
        noisy = alphas[t].sqrt() * latents + (1 - alphas[t]).sqrt() * noise
        estimates = [model(x, torch.full((len(x),), t), words) for x, words in zip(noisy.split(16), tokens.split(16))]
        found[t] = round(float((torch.cat(estimates) - noise).square().mean()), 5)
    return found


def main(minutes, names=()):
    """Trains and measures the variants that are missing of experiments.json, all or those named, prints its table and writes the model card."""
    told = json.loads(FILE.read_text()) if FILE.exists() else {}
    asked = {"minutes": minutes, "device": device_name(torch.device(loop.DEVICE)), "threads": torch.get_num_threads(), "scenes": SCENES, "of": len(VARIANTS)}
    if not asked.items() <= told.items():  # rows are compared with each other
        told = asked | {"rows": []}
    for name in names or VARIANTS:
        if name not in VARIANTS:
            raise SystemExit(f"There is no experiment {name!r}: choose from {'; '.join(VARIANTS)}.")
        if any(row["name"] == name for row in told["rows"]):
            continue
        model, steps = trained(name, minutes)
        found = {str(t): value for t, value in losses(model).items()}
        row = {"name": name, "steps": steps, "losses": found, "heeded": heeded.measured(model, "object", HEEDED)["heeded"]}
        told["rows"].append(row)
        told["rows"].sort(key=lambda row: [*VARIANTS].index(row["name"]))
        FILE.write_text(json.dumps(told, indent=1) + "\n")
        print(json.dumps(row), flush=True)
    card.write()
    print(card.table(told["rows"]))
