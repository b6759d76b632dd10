"""Stage 1: the autoencoder, factor 8 with 4 channels, trained on 64 px crops of scenes.

The small autoencoder (diffusers' AutoencoderTiny) learns fast and settles what the latents mean. Noise on the latent
and a second reconstruction at half size keep the latents smooth, which is what a diffusion model needs: Skorokhodov
et al., "Improving the Diffusability of Autoencoders", arXiv 2502.14831, section 4. A linear reading of the mean colour
keeps all three colour axes in the latents: with L1 alone the weakest (red against green) drowns in that noise.
"""

import copy
import random

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import nn

from . import world
from .loop import WORK, train

CROP = 64  # px


def build():
    """The untrained AutoencoderTiny: constant width 32, no block at full resolution (half of the usual cost)."""
    return AutoencoderTiny(
        encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4, latent_channels=4,
        num_encoder_blocks=(0, 2, 3, 3), num_decoder_blocks=(3, 3, 2, 0), scaling_factor=1.0,
    )


class Training(nn.Module):
    """The autoencoder with the reading of the mean colour that only its training uses."""

    def __init__(self):
        super().__init__()
        self.vae = build()
        self.colour = nn.Conv2d(4, 3, 1)


def pixels(image):
    """RGB image -> float tensor (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1


def crops(seed, batch):
    """Endless batches (batch, 3, 64, 64) in [-1, 1]; three crops of four touch a sticker, all lie on the latent grid."""
    rng = random.Random(seed)
    while True:
        out = []
        while len(out) < batch:
            scene = world.sample(rng)
            picture = pixels(world.render(scene))
            for _ in range(4):
                x, y = (rng.randrange(0, world.SIZE - CROP + 1) for _ in range(2))
                if scene.stickers and rng.random() < 0.75:
                    s = rng.choice(scene.stickers)
                    x, y = (min(max(0, at + rng.randint(-24, s.full - CROP + 24)), world.SIZE - CROP) for at in (s.x, s.y))
                x, y = x // world.GRID * world.GRID, y // world.GRID * world.GRID
                out.append(picture[:, y:y + CROP, x:x + CROP])
        yield torch.stack(out[:batch])


def slopes(image):
    return image.diff(dim=-1), image.diff(dim=-2)


def distance(out, target):
    """L1, half of the L1 of the slopes, and L1 at a quarter of the size."""
    edges = sum((a - b).abs().mean() for a, b in zip(slopes(out), slopes(target)))
    return F.l1_loss(out, target) + 0.5 * edges + 0.5 * F.l1_loss(F.avg_pool2d(out, 4), F.avg_pool2d(target, 4))


def loss(model, images):
    """Reconstruction through a noisy latent, at full and half size, and a pull of the latents to mean 0, deviation 1."""
    vae = model.vae
    latents = vae.encode(images).latents
    noisy = latents + 0.1 * torch.randn_like(latents)
    out = vae.decode(noisy).sample
    half = vae.decode(F.avg_pool2d(noisy[::2], 2)).sample
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    shape = mean.pow(2).mean() + (deviation - 1).pow(2).mean()
    full = distance(out, images)
    colour = F.mse_loss(model.colour(noisy), F.avg_pool2d(images, 8)) + F.mse_loss(F.avg_pool2d(out, 8), F.avg_pool2d(images, 8))
    total = full + 0.25 * distance(half, F.avg_pool2d(images[::2], 2)) + 0.02 * shape + 2 * colour
    with torch.no_grad():
        mse = F.mse_loss(out.clamp(-1, 1), images) / 4
    return total, {"psnr": float(-10 * torch.log10(mse)), "std": float(deviation.detach().mean()), "colour": float(colour.detach())}


@torch.no_grad()
def psnr(model, count=64, seed=10_000_019):
    """Mean PSNR in dB over held-out 256 px scenes."""
    rng = random.Random(seed)
    values = []
    for _ in range(count):
        picture = pixels(world.render(world.sample(rng, "heldout", rng.choice((1, 2)))))[None]
        out = model.decode(model.encode(picture).latents).sample.clamp(-1, 1)
        values.append(float(-10 * torch.log10(F.mse_loss(out, picture) / 4)))
    return sum(values) / count


@torch.no_grad()
def whiten(vae, count=64, seed=40_000_003):
    """Brings every latent channel to mean 0 and deviation 1, by folding the change into the convolutions beside it.
    The decoder squashes its input (3 tanh(z / 3)) before its first convolution, so it wants some training afterwards."""
    rng = random.Random(seed)
    latents = torch.cat([vae.encode(pixels(world.render(world.sample(rng)))[None]).latents for _ in range(count)])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    last = vae.encoder.layers[-1]
    first = next(layer for layer in vae.decoder.layers if isinstance(layer, nn.Conv2d))
    last.weight /= deviation[:, None, None, None]
    last.bias.copy_((last.bias - mean) / deviation)
    first.bias += (first.weight * mean[None, :, None, None]).sum((1, 2, 3))
    first.weight *= deviation[None, :, None, None]


def trained():
    """The trained autoencoder, eval and frozen, with latents of mean 0 and deviation 1 in every channel. Its encoder is
    settled by the first stage; its decoder is the second stage's when that has run."""
    model = Training()
    model.load_state_dict(torch.load(WORK / "autoencoder.pt", weights_only=True)["average"])
    vae = model.vae.eval().requires_grad_(False)
    whiten(vae)
    if (WORK / "decoder.pt").exists():
        vae.decoder.load_state_dict(torch.load(WORK / "decoder.pt", weights_only=True)["average"])
    return vae


def decoder_loss(encoder):
    """Reconstruction from settled latents with a little noise, about as much as a sampler leaves."""
    def loss(decoder, images):
        with torch.no_grad():
            latents = encoder(images)
            latents = latents + 0.05 * torch.randn_like(latents)
        out = decoder(latents)
        mse = F.mse_loss(out, images)
        coarse = F.mse_loss(F.avg_pool2d(out, 8), F.avg_pool2d(images, 8))
        return distance(out, images) + mse + 4 * coarse, {"psnr": float(-10 * torch.log10(mse.detach() / 4))}

    return loss


def fit_decoder(minutes, seed=3, batch=8):
    """Trains the decoder alone; the latents, and so the teacher, stay as they are."""
    torch.manual_seed(seed)
    vae = trained()

    def report(decoder):
        vae.decoder = decoder
        return {"heldout_psnr": round(psnr(vae, 16), 2)}

    decoder = copy.deepcopy(vae.decoder).requires_grad_(True)
    return train("decoder", decoder, crops(seed, batch), decoder_loss(vae.encoder), minutes, lr=1e-3,
                 report=report, report_every=120)


def fit(minutes, seed=0, batch=8):
    torch.manual_seed(seed)
    model, log = train("autoencoder", Training(), crops(seed, batch), loss, minutes, lr=1.5e-3,
                       report=lambda m: {"heldout_psnr": round(psnr(m.vae, 16), 2)}, report_every=120)
    return model.vae, log
