"""A drawing as a condition: a small network reads it and adds what it finds to the U-Net, at every step of any row.

ControlNet, Zhang et al., arXiv 2302.05543. The network lies in the folder `sketch` beside the model that it was trained for,
as diffusers reads it. It belongs to these weights alone.
"""

from contextlib import contextmanager

from . import fitted, given, models
from .patch import Refused, replaced

ABOUT = "sketch.json"  # in the network's folder: whose it is and how it was trained
MAKE = "make it with `python -m fastviz.stickers sketch`, then `export-sketch`"


def path_of(folder):
    """Where the network for the model in `folder` lies."""
    return folder.parent / "sketch"


def missing(folder):
    """"" when a network reads sketches for the model in `folder`, else the sentence that tells what to do."""
    fault = fitted.fault(path_of(folder) / ABOUT, folder)
    return fault and f"This model cannot follow a sketch, {fault}: clear the sketch, or {MAKE}."


def ready():
    """Whether any model that is here follows sketches: else nobody is offered a sheet."""
    return any(not missing(model.folder) for model in models.MODELS.values() if model.folder.is_dir())


def load(pipe):
    """The ControlNetModel of `pipe`, on its device. Refused when there is none, or when it belongs to something else."""
    folder = fitted.folder(pipe)
    if folder is None:
        raise Refused("A network that reads sketches lies beside a model's files, and this model has none: clear the sketch.")
    if sentence := missing(folder):
        raise Refused(sentence)
    try:
        return models.load_control(path_of(folder))
    except models.BadModel as error:
        raise Refused(f"{error} Or {MAKE}.") from error


def condition(drawing, size, device="cpu", dtype=None):
    """What the network sees of a drawing, bytes as given.sketch gives them: (1, 3, size, size) in 0..1, strokes at 1."""
    import numpy as np
    import torch

    strokes = 1 - torch.from_numpy(np.asarray(given.picture(drawing).convert("L"), np.float32) / 255)
    strokes = torch.nn.functional.interpolate(strokes[None, None], (size, size), mode="area")
    return strokes.expand(1, 3, size, size).to(device, dtype)


def taken(unet):
    """How many residuals the U-Net's way down takes: one for each layer, and the first convolution's."""
    return 1 + sum(len(stage.resnets) + bool(stage.downsamplers) for stage in unet.down_blocks)


def followed(unet, control, forward, seen):
    """unet.forward that follows the drawing `seen`. A student has lost its lowest stages, and what is said for them."""
    import torch  # here: the page asks this file what there is before torch is there

    places = taken(unet)

    def guided(sample, timestep, encoder_hidden_states, **kwargs):
        downs, middle = control(sample[:1], timestep, encoder_hidden_states[:1], seen, return_dict=False)  # equal for both halves
        middle = middle if places == len(downs) else torch.zeros((), device=sample.device, dtype=sample.dtype)
        return forward(sample, timestep, encoder_hidden_states, down_block_additional_residuals=downs[:places],
                       mid_block_additional_residual=middle, **kwargs)

    return guided


@contextmanager
def attach(pipe, request, owner):
    """Modifications where the request holds a sketch, none otherwise:
     - forward of the U-Net: it is given what the network for sketches reads at this step
    To be attached to the pipeline that runs. owner: the model's own pipeline, whose network it is. Refused without one."""
    if request.sketch is None:
        yield
        return
    control = load(owner)
    if pipe.device.type == "meta":
        from .bare import bare_module

        control = bare_module(control)
    seen = condition(request.sketch, request.size, pipe.device, pipe.unet.dtype)
    with replaced(pipe.unet, forward=followed(pipe.unet, control, pipe.unet.forward, seen)):
        yield
