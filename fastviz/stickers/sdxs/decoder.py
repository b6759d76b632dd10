"""The small decoder: it learns to draw what the teacher's decoder draws from the same latents.

SDXS, arXiv 2403.16627, section on the image decoder: the distance between the two outputs, eight times smaller. Here the
full size counts too: the teacher's decoder adds no texture of its own, so what it draws can be learnt as it is, and the
paper's adversarial term has nothing left to invent.
"""

from functools import partial

import torch
import torch.nn.functional as F

from .. import autoencoder
from ..loop import DEVICE, feed, start_seed, train
from ..muon import optimizers
from . import chain, network


def distance(out, target):
    """The paper's: mean absolute difference of the pictures, eight times smaller; and that of the full pictures and of
    their slopes, see autoencoder.distance."""
    coarse = F.l1_loss(F.avg_pool2d(out, autoencoder.CELL), F.avg_pool2d(target, autoencoder.CELL))
    return coarse + autoencoder.distance(out, target)


def fit(minutes, batch, lr, decay=0.25):
    """Trains the decoder on latents of crops of scenes, or goes on from the checkpoint. decay: see loop.train."""
    start = chain.checkpoint("decoder")
    seed = start_seed(chain.name("decoder"), 14, start)
    vae, guide = (each.to(memory_format=torch.channels_last) for each in (chain.small_autoencoder(), chain.own_autoencoder()))
    small = network.small_vae(vae).to(DEVICE, memory_format=torch.channels_last)

    def loss(decoder, images):
        latents = autoencoder.settled(vae.encoder, images.to(DEVICE))[0]
        with torch.no_grad():
            wanted = guide.decode(latents).sample
        out = decoder(latents)
        return distance(out, wanted), {"psnr": autoencoder.decibels(F.mse_loss(out.detach(), wanted))}

    def report(decoder):
        """heldout_psnr: against whole held-out scenes; teacher: of the teacher's decoder."""
        return {name: autoencoder.psnr(vae.encoder, decode, 16)
                for name, decode in (("heldout_psnr", decoder), ("teacher", lambda latents: guide.decode(latents).sample))}

    return train(chain.name("decoder"), small.decoder, feed(partial(autoencoder.crops, batch=batch), seed), loss, minutes, lr,
                 optimizers=optimizers(small.decoder, lr), decay=decay, report=report, report_every=60, start=start, recipe={"batch": batch})


def trained():
    """The student's autoencoder: the teacher's encoder and the small decoder, on the CPU. NotYet before its stage has run."""
    if (saved := chain.checkpoint("decoder")) is None:
        raise chain.NotYet("There is no small decoder for the committed model: run `python -m fastviz.stickers student-decoder` first.")
    vae = network.small_vae(chain.small_autoencoder().cpu())
    vae.decoder.load_state_dict(saved["average"])
    return vae.eval().requires_grad_(False)
