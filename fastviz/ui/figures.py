"""Pictures of what a row is made of, whatever it draws: how a fitted schedule steps, what a student does without."""

import base64
import json

from .. import fitted, models
from ..methods import method_of, olss, sdxs

TITLES = {"timesteps": "When the network is asked", "coefficients": "How its answers are added up",
          "distance": "How far it strays from the full run", "networks": "What was taken out of the network"}


def of_row(pipe, request, stack):
    """[{"title", "light", "dark"}] of a row that ran, the last two as data URIs of PNG files."""
    drawn = [DRAWN[method](pipe, request, knobs) for knobs in stack if (method := method_of(knobs)) in DRAWN]
    return [{"title": TITLES[kind], "light": uri(light), "dark": uri(dark)}
            for draw in drawn for (kind, light), dark in zip(draw(False).items(), draw(True).values())]


def schedule(pipe, request, knobs):
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


def student(pipe, request, knobs):
    """dark -> {kind: Figure} of the two networks."""
    from .. import stages, views

    if not knobs.unet:
        return lambda dark: {}
    networks = pipe.unet, models.load_beside(sdxs.path_of(fitted.folder(pipe))).unet
    told = [stages.stages(unet, request.size // pipe.vae_scale_factor) for unet in networks]
    return lambda dark: {"networks": views.networks(*told, dark)}


def uri(figure):
    from .. import views

    return "data:image/png;base64," + base64.b64encode(views.png(figure)).decode()


DRAWN = {olss: schedule, sdxs: student}
