"""A small network that was trained to draw in one step, with a small decoder: other weights instead of a shorter way.

Changed: the U-Net, its text encoder and scheduler, the number of steps, guidance (it was trained in) and the decoder. Song et al.,
SDXS, arXiv 2403.16627. The weights are those of the published student that the table of models names, which is fetched by itself, or
lie in the folder `sdxs` beside the model whose student they are; the embedded model's are made by the stages of `python -m
fastviz.stickers` from `distil` to `export-student`.
"""

import copy
import functools
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from .. import fitted, models, verified
from ..knobs import switch
from ..patch import Refused, replaced

KEY = "sdxs"
TITLE = "One-step student"
SAYS = "Draws in one step, with a smaller network and decoder that were trained to do so."
PAPER = ("Song et al., SDXS", "https://arxiv.org/abs/2403.16627")
ROLE = "weights"

ABOUT = "student.json"  # in the student's folder: whose it is and how it was trained
MAKE = "make it with `python -m fastviz.stickers export-student`, after the training stages from `distil` on"


@dataclass(frozen=True)
class Knobs:
    """Both off is the full model: with either on, the picture comes from other weights."""
    unet: bool = switch(True, "Draw in one step, without guidance, with the small network. Off keeps the model's own network "
                        "and steps.")
    decoder: bool = switch(True, "Turn the latents into a picture with the small decoder. Off keeps the model's own.")


NEUTRAL = Knobs(unet=False, decoder=False)


def plan(knobs, steps):
    """The number of steps that a row with these knobs takes when the request asks for `steps`."""
    return 1 if knobs.unet else steps


def kinds(knobs, steps):
    """One label per step: all steps do the same work."""
    return (KEY,) * steps


# The student's weights

path_of = fitted.student


def missing(folder):
    """"" when the student of the model in `folder` is there and belongs to its weights, else the sentence that tells what to
    do. folder: None for a model without one."""
    if folder and (model := models.published(folder)):
        return model.missing
    if folder is None:
        return "A one-step student lies beside a model's files, and this model has none: leave this row out."
    fault = fitted.fault(path_of(folder) / ABOUT, folder)
    return fault and f"This model has no one-step student, {fault}: {MAKE}."


def ready():
    """Whether any model has its student: else nobody is offered one."""
    return any(not missing(model.folder) for model in models.MODELS.values() if model.folder.is_dir())


def load(pipe):
    """The pipeline of the student of `pipe`. Refused when there is none, or when it belongs to something else."""
    folder = fitted.folder(pipe)
    if sentence := missing(folder):
        raise Refused(sentence)
    try:
        model = models.published(folder)
        return models.load(model.key) if model else models.load_beside(path_of(folder))
    except verified.BadModel as error:
        raise Refused(str(error) if model else f"{error} Or {MAKE}.") from error


def previewing(pipe):
    """A copy of `pipe` with a small decoder of the same latents, for pictures that are looked at and not measured: that of the
    folder `tiny` beside the model, which draws more finely, else its student's. `pipe` itself where there is neither."""
    folder, small = fitted.folder(pipe), None
    if folder:
        with suppress(verified.BadModel):
            small = models.load_tiny(fitted.beside(folder, "tiny"), pipe.vae.dtype)
    if small is None and not missing(folder):
        with suppress(verified.BadModel):
            small = models.load_tiny(path_of(folder), pipe.vae.dtype, part="vae/")
    if small is None:
        return pipe
    ready = copy.copy(pipe)
    ready.vae = small
    return ready


def exact(scheduler):
    """The scheduler, with steps in float32 whatever the network computes in: Euler's multiplies the network's answer by sigma,
    14.6 here, in the answer's own type, and half precision knows only multiples of 1/64 above 16."""
    own = scheduler.step

    @functools.wraps(own)
    def step(model_output, *args, **kwargs):
        return own(model_output.float(), *args, **kwargs)

    scheduler.step = step
    return scheduler


def touched(unet, grid, knobs):
    """Where it can save work: "" is the whole U-Net."""
    return [""] * knobs.unet + ["decoder"] * knobs.decoder


@contextmanager
def attach(pipe, knobs, context):
    """Modifications: none of the pipeline. Yields a copy that has, in place of the model's own:
     - unet, text_encoder and scheduler: one step of the student's; context.guidance is then 1, because guidance was trained in
     - vae: the student's
    Refused when this model's student is not there."""
    with ExitStack() as exits:
        if knobs != NEUTRAL:
            student = load(pipe)
            if pipe.device.type == "meta":
                from ..bare import on_meta

                student = exits.enter_context(on_meta(student))
            parts = {"vae": student.vae} if knobs.decoder else {}
            if knobs.unet:
                fresh = exact(type(student.scheduler).from_config(student.scheduler.config))
                parts |= {"unet": student.unet, "text_encoder": student.text_encoder, "scheduler": fresh}
                exits.enter_context(replaced(context, guidance=1.0))
            context.acted[KEY] |= {(part, step) for part in parts for step in range(context.steps)}
            pipe = exits.enter_context(replaced(copy.copy(pipe), **parts))
        yield pipe
