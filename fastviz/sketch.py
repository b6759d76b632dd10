"""A drawing as a condition: a small network reads it and adds what it finds to the U-Net, at every step of any row.

ControlNet, Zhang et al., arXiv 2302.05543. The network lies in the folder `sketch` beside the model that it was trained for,
as diffusers reads it, and belongs to these weights alone. A one-step student may have its own, in `sdxs-sketch`; without,
it follows what the model's own says to the stages that are left of it.
"""

import json
from contextlib import contextmanager

from . import fitted, given, models, verified
from .patch import Refused, replaced

ABOUT = "sketch.json"  # in the network's folder: whose it is, how it was trained, and how much of it is added


def path_of(folder):
    """Where the network for the model in `folder` lies."""
    return fitted.beside(folder, "sketch")


def students_path(folder):
    """Where the network for the student of the model in `folder` lies, where it has one."""
    return path_of(fitted.student(folder))


def missing(folder):
    """"" when a network reads sketches for the model in `folder`, else the sentence that tells what to do."""
    fault = fitted.fault(path_of(folder) / ABOUT, folder)
    return fault and f"This model cannot follow a sketch, {fault}: clear the sketch{make(folder)}."


def make(folder):
    """How a network for the model in `folder` comes there, as the end of a sentence; "" where there is no way."""
    model = next((model for model in models.MODELS.values() if model.folder == folder), None)
    if model and model.control:
        return f", or bring the network with `python -m fastviz fetch {model.key}`"
    return ", or make the network with `python -m fastviz.stickers sketch`, then `export-sketch`" if model and model.key == "stickers" else ""


def ready():
    """Whether any model that is here follows sketches: else nobody is offered a sheet."""
    return any(not missing(model.folder) for model in models.MODELS.values() if model.folder.is_dir())


def place(folder, student):
    """Where the network lies that serves the model in `folder`, or its student."""
    own = student and not fitted.fault(students_path(folder) / ABOUT, fitted.student(folder))
    return students_path(folder) if own else path_of(folder)


def load(pipe, student=False):
    """The ControlNetModel of `pipe`, or of its student, on its device. Refused when there is none, or when it belongs to something
    else."""
    folder = fitted.folder(pipe)
    if folder is None:
        raise Refused("A network that reads sketches lies beside a model's files, and this model has none: clear the sketch.")
    if sentence := missing(folder):
        raise Refused(sentence)
    try:
        return models.load_control(place(folder, student), pipe.unet.dtype)
    except verified.BadModel as error:
        raise Refused(f"{error} Without it: clear the sketch{make(folder)}.") from error


def scale(place):
    """What the residuals of the network that lies there are multiplied with."""
    return json.loads((place / ABOUT).read_text()).get("scale", 1.0)


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


def reads(control):
    """Whether a network reads the prompt too, so that its residuals differ between the halves of guidance."""
    return any("CrossAttn" in kind for kind in (*control.config.down_block_types, control.config.mid_block_type or ""))


def followed(unet, control, forward, seen, scale=1.0):
    """unet.forward that follows the drawing `seen`. A student has lost its lowest stages, and what is said for them."""
    import torch  # here: the page asks this file what there is before torch is there

    places, ways = taken(unet), None if reads(control) else 1  # without the prompt, both halves of guidance get the same

    def guided(sample, timestep, encoder_hidden_states, **kwargs):
        downs, middle = control(sample[:ways], timestep, encoder_hidden_states[:ways], seen.expand(len(sample[:ways]), -1, -1, -1),
                                conditioning_scale=scale, return_dict=False)
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
    student = taken(pipe.unet) < taken(owner.unet)
    control, scaled = load(owner, student), scale(place(fitted.folder(owner), student))
    if pipe.device.type == "meta":
        from .bare import bare_module

        control = bare_module(control)
    seen = condition(request.sketch, request.size, pipe.device, pipe.unet.dtype)
    with replaced(pipe.unet, forward=followed(pipe.unet, control, pipe.unet.forward, seen, scaled)):
        yield
