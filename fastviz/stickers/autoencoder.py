"""Stage 1: the autoencoders, factor 8 with 4 channels, trained on 64 px crops of scenes.

`autoencoder` trains diffusers' AutoencoderTiny, which learns fast, and so settles what the latents mean. Noise on the
latent and a second reconstruction at half size keep the latents smooth, which is what a diffusion model needs:
Skorokhodov et al., "Improving the Diffusability of Autoencoders", arXiv 2502.14831, section 4. A linear reading of the
mean colour keeps all three colour axes in the latents: with L1 alone the weakest (red against green) drowns in that
noise. `decoder` then improves its decoder alone, and `reference` trains an AutoencoderKL for the same latents.
"""

import copy
import random
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn

from . import world
from .loop import DEVICE, checkpoint, feed, shipped, start_seed, train
from .muon import optimizers

CROP = 64  # px
CELL = 8  # px, what one latent stands for


def tiny():
    """The untrained AutoencoderTiny. Its decoder has as many blocks where the edges of stickers are drawn as on the latents' own
    grid: with (8, 4, 1, 0) blocks twice as wide, in the same time, it ended at 28.3 dB."""
    return AutoencoderTiny(
        encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4, latent_channels=4,
        num_encoder_blocks=(0, 2, 3, 3), num_decoder_blocks=(3, 3, 3, 2), scaling_factor=1.0,
    )


def kl():
    """The untrained AutoencoderKL. Few groups in its norms: with few channels a group, they fight flat colours."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 48, 96, 96), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=world.SIZE,
        scaling_factor=1.0, mid_block_add_attention=False,
    )


class Training(nn.Module):
    """The small autoencoder with the reading of the mean colour that only its training uses."""

    def __init__(self):
        super().__init__()
        self.vae = tiny()
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
                x, y = x // CELL * CELL, y // CELL * CELL
                out.append(picture[:, y:y + CROP, x:x + CROP])
        yield torch.stack(out[:batch])


def slopes(image):
    return image.diff(dim=-1), image.diff(dim=-2)


def distance(out, target):
    """L1, half of the L1 of the slopes, and half of the L1 at a quarter of the size."""
    edges = sum((a - b).abs().mean() for a, b in zip(slopes(out), slopes(target)))
    return F.l1_loss(out, target) + 0.5 * edges + 0.5 * F.l1_loss(F.avg_pool2d(out, 4), F.avg_pool2d(target, 4))


def decibels(mse):
    """PSNR of pictures in [-1, 1]."""
    return -10 * torch.log10(mse / 4)


def loss(model, images):
    """Reconstruction through a noisy latent, at full and half size, the mean colour of every cell, and a pull of the
    latents to mean 0, deviation 1."""
    images, vae = images.to(DEVICE), model.vae
    latents = vae.encode(images).latents
    noisy = latents + 0.1 * torch.randn_like(latents)
    out, half = vae.decode(noisy).sample, vae.decode(F.avg_pool2d(noisy[::2], 2)).sample
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    shape = mean.pow(2).mean() + (deviation - 1).pow(2).mean()
    coarse = F.avg_pool2d(images, CELL)
    colour = F.mse_loss(model.colour(noisy), coarse) + F.mse_loss(F.avg_pool2d(out, CELL), coarse)
    total = distance(out, images) + 0.25 * distance(half, F.avg_pool2d(images[::2], 2)) + 0.1 * shape + 2 * colour
    return total, {"psnr": decibels(F.mse_loss(out.detach(), images)), "std": deviation.mean(), "colour": colour}


@torch.no_grad()
def psnr(encode, decode, count=64, seed=10_000_019):
    """Mean PSNR in dB over held-out 256 px scenes."""
    rng, values = random.Random(seed), []
    for _ in range(count):
        picture = pixels(world.render(world.sample(rng, "heldout", rng.choice((1, 2)))))[None].to(DEVICE)
        values.append(float(decibels(F.mse_loss(decode(encode(picture)).clamp(-1, 1), picture))))
    return round(sum(values) / count, 2)


def fit(minutes, batch, lr):
    seed = start_seed("autoencoder", 0)

    def report(average):
        vae = average.vae
        return {"heldout_psnr": psnr(lambda x: vae.encode(x).latents, lambda z: vae.decode(z).sample, 16)}

    return train("autoencoder", Training(), feed(partial(crops, batch=batch), seed), loss, minutes, lr, report=report,
                 report_every=120)


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
    """The small autoencoder, eval and frozen, with latents of mean 0 and deviation 1 in every channel. Its encoder is
    settled by the first stage; its decoder is the second stage's when that has run. Without checkpoints: what is committed."""
    model = Training()
    vae = model.vae.eval().requires_grad_(False)
    if saved := checkpoint("autoencoder"):
        model.load_state_dict(saved["average"])
        whiten(vae)
    else:
        vae.load_state_dict(shipped("tiny") or shipped("model", "vae"))
    if saved := checkpoint("decoder"):
        vae.decoder.load_state_dict(saved["average"])
    return vae


def trained_reference():
    """The AutoencoderKL for the latents of `trained`, eval and frozen, from its checkpoint or as committed; None before its
    stage has run."""
    saved, vae = checkpoint("reference"), kl()
    weights = saved["average"] if saved else shipped("tiny") and shipped("model", "vae")  # beside `tiny` lies the reference
    if weights:
        vae.load_state_dict(weights)
    return vae.eval().requires_grad_(False) if weights else None


def rebuild_loss(out, images):
    """Squared error, which is what PSNR tells, and a little L1, for flat colours without ripples. Latents are settled here, and
    scenes have no texture that had to be invented: nothing is gained by a distance that forgives where an edge stands."""
    return 10 * F.mse_loss(out, images) + 0.2 * F.l1_loss(out, images)


def settled(encoder, images, noise=0.05):
    """Latents of `images` with a little noise, about as much as a sampler leaves, and without it."""
    with torch.no_grad():
        latents = encoder(images)
        return latents + noise * torch.randn_like(latents), latents


def fit_decoder(minutes, batch, lr, decay=0.25):
    """Trains the small decoder alone; the latents, and so the teacher, stay as they are. decay: see loop.train."""
    seed = start_seed("decoder", 3)
    vae = trained().to(DEVICE)

    def loss(decoder, images):
        images = images.to(DEVICE)
        out = decoder(settled(vae.encoder, images)[0])
        return rebuild_loss(out, images), {"psnr": decibels(F.mse_loss(out.detach(), images))}

    decoder = copy.deepcopy(vae.decoder).requires_grad_(True).to(memory_format=torch.channels_last)
    return train("decoder", decoder, feed(partial(crops, batch=batch), seed), loss, minutes, lr, optimizers=optimizers(decoder, lr),
                 decay=decay, report=lambda decoder: {"heldout_psnr": psnr(vae.encoder, decoder, 16)}, report_every=120)


def fit_reference(minutes, batch, lr, decay=0.25):
    """Trains the AutoencoderKL: its encoder to give the settled latents, its decoder to draw from them. decay: see loop.train."""
    seed = start_seed("reference", 4)
    encoder = trained().encoder.to(DEVICE)

    def loss(model, images):
        images = images.to(DEVICE)
        noisy, latents = settled(encoder, images)
        few = len(images) // 4 or 1  # the encoder has the easier task
        out, posterior = model.decode(noisy).sample, model.encode(images[:few]).latent_dist
        match = F.mse_loss(posterior.mean, latents[:few]) + 1e-3 * (posterior.logvar + 8).pow(2).mean()  # deviation near 0.02
        return rebuild_loss(out, images) + match, {"psnr": decibels(F.mse_loss(out.detach(), images)), "match": match}

    def report(average):
        return {"heldout_psnr": psnr(lambda x: average.encode(x).latent_dist.mean, lambda z: average.decode(z).sample, 16)}

    model = kl().to(memory_format=torch.channels_last)
    return train("reference", model, feed(partial(crops, batch=batch), seed), loss, minutes, lr, optimizers=optimizers(model, lr), decay=decay,
                 report=report, report_every=120)
