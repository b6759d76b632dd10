"""Pictures of what a row is made of, whatever it draws: how a fitted schedule steps, what a student does without."""

import base64
import json

from .. import fitted
from ..methods import method_of, olss, sdxs
from . import worker

TITLES = {"timesteps": "When the network is asked", "coefficients": "How its answers are added up",
          "distance": "How far it strays from the full run", "networks": "What was taken out of the network",
          "decoders": "What the small decoder loses"}


def of_row(pipe, request, stack, latents=None):
    """[{"title", "light", "dark"}] of a row that ran, the last two as data URIs of PNG files. latents: (4, h, w) array, what the
    row ended with; None draws nothing of what decoders make of them."""
    drawn = [DRAWN[method](pipe, request, knobs, latents) for knobs in stack if (method := method_of(knobs)) in DRAWN]
    return [{"title": TITLES[kind], "light": uri(light), "dark": uri(dark)}
            for draw in drawn for (kind, light), dark in zip(draw(False).items(), draw(True).values())]


def schedule(pipe, request, knobs, latents):
    """dark -> {kind: Figure} of the coefficients that the row stepped with."""
    from .. import views

    if not knobs.steps:
        return lambda dark: {}
    path = olss.path_of(fitted.folder(pipe), knobs.search, knobs.steps, request.guidance)
    told = json.loads(path.read_text())
    if "measured" not in told["fitted"]:  # made by other means than the command
        return lambda dark: {}
    explained = olss.explained(told)
    return lambda dark: views.scheme(explained, dark)


def student(pipe, request, knobs, latents):
    """dark -> {kind: Figure} of the two networks and of the two decoders, as far as the row has the student's."""
    from .. import stages, views

    if knobs == sdxs.NEUTRAL:
        return lambda dark: {}
    both, drawn = (pipe, sdxs.load(pipe)), {}
    if knobs.unet:
        drawn["networks"] = [stages.stages(each.unet, request.size // pipe.vae_scale_factor) for each in both]
    if knobs.decoder and latents is not None and not worker.LENT:  # a device that is lent decodes in its worker alone
        drawn["decoders"] = decoded(both, latents)
    return lambda dark: {kind: getattr(views, kind)(*told, dark) for kind, told in drawn.items()}


def decoded(pipes, latents):
    """The picture (PIL) that each pipeline's decoder makes of latents (4, h, w)."""
    import torch

    from ..run import pictures

    return [pictures(pipe, torch.from_numpy(latents)[None])[0] for pipe in pipes]


def uri(figure):
    from .. import views

    return "data:image/png;base64," + base64.b64encode(views.png(figure)).decode()


DRAWN = {olss: schedule, sdxs: student}
