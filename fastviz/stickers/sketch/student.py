"""Training of the student's own network for sketches: what the teacher draws along a sketch in many steps, the student learns
to draw in one, and only what reads the sketch is changed.

SDXS, arXiv 2403.16627, section on image conditions. It begins as the teacher's network, without the stages that the student
has lost, and is told by feature matching alone, as in the student's warm-up; pairs come from `pairs --drawn`.
"""

import torch

from ... import fitted
from ...methods import sdxs
from .. import evaluate as drawing
from ..loop import DEVICE, compiled, shipped, start_seed, train
from ..sdxs import chain, network as students, warmup
from ..sdxs.pairs import Pairs
from . import evaluate, network, outline

HELD_OUT = 12  # scenes that the reports measure on


def home():
    """The folder of the committed student. NotYet when there is none of the committed teacher's."""
    if sentence := sdxs.missing(chain.MODEL.folder):
        raise chain.NotYet(sentence)
    return sdxs.path_of(chain.MODEL.folder)


def name():
    """What the checkpoint is called: it belongs to one student."""
    return f"student-sketch-{fitted.weights(home())[:8]}"


def committed(guide):
    """The committed student's U-Net, frozen, on the training device."""
    unet = students.small_unet(guide.unet)
    unet.load_state_dict(shipped("sdxs", "unet"))
    return chain.frozen(unet)


def begun(unet):
    """The network before its first step: of the teacher's all that the student's has, too."""
    control = network.untrained(unet)
    own, theirs = control.state_dict(), shipped("sketch") or {}
    control.load_state_dict(own | {name: theirs[name] for name in own if name in theirs and theirs[name].shape == own[name].shape})
    return control


def loss_of(guide, student, alphas, downwards):
    """loss(control, (noise, tokens, latents, sketches)) for loop.train. downwards: see warmup.matching."""
    def loss(control, batch):
        noise, tokens, latents, sketches = batch
        text = chain.embedded(guide, tokens)
        drawn = students.one_step(network.following(student, control, sketches), noise, text, alphas)
        return warmup.paired(guide.unet, drawn, latents, text, alphas, downwards)

    return loss


def batches(pairs, size):
    while True:
        yield pairs.sketched(size)


def report_of(guide, student):
    """report(control) -> evaluate.told of HELD_OUT held-out scenes that the student draws in one step along their sketches."""
    scenes = [scene for number in (1, 2) for scene in drawing.prompts(HELD_OUT // 2, 30_000_059, number)]
    sketches = [outline.draw(scene) for scene in scenes]
    vae, alphas = chain.own_autoencoder(), chain.alphas()
    noise = torch.cat([drawing.noise(i) for i in range(len(scenes))]).to(DEVICE)
    text = chain.embedded(guide, chain.tokens_of(guide, [scene.caption for scene in scenes]))

    @torch.no_grad()
    def report(control):
        seen = network.following(student, control, network.drawings(scenes).to(DEVICE))
        latents = students.one_step(seen, noise, text, alphas)
        return evaluate.told(scenes, sketches, [picture for some in latents.split(4) for picture in warmup.painted(vae, some)])

    return report


def fit(minutes, size, lr):
    """Goes on from the checkpoint or, without one, from what `begun` gives."""
    start_seed(name(), 16)
    guide = chain.committed_teacher(minutes)
    student, pairs = committed(guide), Pairs(guide, drawn=True)
    loss = loss_of(guide, student, chain.alphas(), compiled(students.downwards, minutes))
    return train(name(), begun(student).to(DEVICE), batches(pairs, size), loss, minutes, lr, horizon=300, report=report_of(guide, student),
                 recipe={"batch": size})
