"""What the stages share: the committed teacher, the student as the stage before left it, and prompts of training scenes.

Checkpoints carry the first digits of the teacher's sha256 in their names: what belongs to other weights is not found. On a
machine without any, what was kept of the student is gone on from, or the student that is shipped.
"""

import json
import random

import torch

from ... import fitted, models
from ...methods.sdxs import ABOUT
from .. import autoencoder, loop, parts, teacher, world
from ..loop import DEVICE, exact, quick, shipped
from . import UNETS, network

MODEL = models.MODELS["stickers"]
KEPT, SHIPPED = "onward-sdxs", "sdxs"  # folders of assets/stickers: a student that is not yet fit to be seen, and the one that the app draws with


class NotYet(RuntimeError):
    """A stage that needs another one first; the text names the command."""


def digest():
    """sha256 of the committed teacher's weights, as `fitted` tells weights apart."""
    return fitted.weights(MODEL.folder)


def name(stage):
    """What a stage's checkpoint is called."""
    return f"student-{stage}-{digest()[:8]}"


def committed(places=(KEPT, SHIPPED)):
    """(folder, what its student.json tells) of the first of the places that holds a student of the committed teacher's; (None, {})
    when none does."""
    for place in places:
        file = loop.SHIPPED / place / ABOUT
        told = json.loads(file.read_text()) if file.is_file() else {}
        if told.get("teacher") == digest():
            return place, told
    return None, {}


def checkpoint(stage):
    """What `loop.checkpoint` gives of a stage, None when there is nothing. On a machine where no stage of the U-Net has run, that of
    a committed student's last one is made of what is committed, without optimizers; so is the decoder's where it has not run."""
    if saved := loop.checkpoint(name(stage)):
        return saved
    place, told = committed()
    if stage != "decoder" and (stage != told.get("stage") or any((loop.WORK / f"{name(each)}.pt").exists() for each in UNETS)):
        return None
    if stage not in told.get("stages", {}):
        return None
    if stage == "decoder":
        weights = {key.removeprefix("decoder."): value for key, value in shipped(place, "vae").items() if key.startswith("decoder.")}
    else:
        weights = {"student." * (stage == "score") + key: value for key, value in shipped(place, "unet").items()}
    row = told["stages"][stage]
    return {"model": weights, "average": weights, "step": row["step"], "hours": row["hours"], "sittings": row["sittings"],
            "log": [{"device": device} for device in row["device"]]}


def frozen(module):
    """On the training device, without gradients."""
    return module.to(DEVICE).eval().requires_grad_(False)


def committed_teacher(minutes=None):
    """The committed teacher.Teacher, frozen, on the training device; as `quick` makes it for `minutes` of training, None: plain."""
    model = teacher.built(teacher.committed()["weights"])
    if minutes is not None:
        quick(model.unet, minutes)
    return frozen(model)


def alphas():
    """Cumulative alphas by timestep, on the training device."""
    return parts.scheduler().alphas_cumprod.to(DEVICE)


def earlier(stage, unet):
    """Weights (the moving average) of the newest checkpoint of a stage that belongs to another teacher, of which this one may be
    a further trained copy, and that fit the student `unet`; None when there is none."""
    wanted = shapes(unet.state_dict())
    for path in sorted(loop.WORK.glob(f"student-{stage}-*.pt"), key=lambda path: path.stat().st_mtime, reverse=True):
        if path.name != f"{name(stage)}.pt" and shapes(weights := torch.load(path, map_location=DEVICE, weights_only=True)["average"]) == wanted:
            return weights
    return None


def shapes(weights):
    return {name: weight.shape for name, weight in weights.items()}


def parent(stage):
    """The step of the stage before, where `stage` begins: where it began, once that one's checkpoint is gone; None before either has
    run. A checkpoint of `stage` that began at another step is put aside as <name>.before, and told of: `stage` then begins again."""
    before, own = checkpoint(UNETS[UNETS.index(stage) - 1]), checkpoint(stage)
    begun = own and own["sittings"][-1].get("parent")
    if not before:
        return begun
    if own and begun != before["step"]:
        path = loop.WORK / f"{name(stage)}.pt"
        path.replace(path.with_suffix(".before"))
        print(f"{path.stem}: begins again, because the stage before is now at step {before['step']}; {path.stem}.before keeps what was there.")
    return before["step"]


def student(guide, stage):
    """The student's U-Net as `stage` left it: its moving average, on the CPU. NotYet when that stage has not run."""
    if (saved := checkpoint(stage)) is None:
        raise NotYet(f"There is no checkpoint of this stage for the committed teacher: run `python -m fastviz.stickers {stage}` first.")
    unet = network.small_unet(guide.unet)
    weights = saved["average"]
    if stage == "score":  # trained beside its online score
        weights = {key.removeprefix("student."): value for key, value in weights.items() if key.startswith("student.")}
    unet.load_state_dict(weights)
    return unet


def scenes(seeds):
    """Training scenes, one from each seed: of one object or of two alike often, with captions that tell sides as the teacher's."""
    return [world.sample(rng, count=rng.choice((1, 2)), aside=teacher.ASIDE) for rng in map(random.Random, seeds)]


def captions(seeds):
    return [scene.caption for scene in scenes(seeds)]


def tokens_of(guide, texts):
    """(B, 24) token ids on the training device."""
    return teacher.tokens_of(guide.tokenizer, texts).to(DEVICE)


@torch.no_grad()
def embedded(guide, tokens):
    """(B, 24, D), in single precision: the teacher's text encoder is the student's too."""
    with exact():
        return guide.text(tokens.to(DEVICE)).last_hidden_state


def small_autoencoder():
    """The committed small autoencoder, whose encoder settled the latents; frozen, on the training device."""
    vae = autoencoder.tiny()
    vae.load_state_dict(shipped("tiny") or shipped("model", "vae"))
    return frozen(vae)


def own_autoencoder():
    """The one that the committed model draws with, frozen, on the training device: the AutoencoderKL, where there is one."""
    if not shipped("tiny"):
        return small_autoencoder()
    vae = autoencoder.kl()
    vae.load_state_dict(shipped("model", "vae"))
    return frozen(vae)
