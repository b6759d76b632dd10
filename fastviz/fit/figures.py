"""Pictures of a fitted schedule, from its file of coefficients alone."""

import json

from .. import views
from ..schedulers import BETAS, alphas_of, ddim


def of_file(told):
    """{"timesteps", "coefficients", "distance"}: matplotlib Figures of a configuration as fit.olss.save writes it."""
    config, lanes = {name: told[name] for name in BETAS}, told["fitted"]["measured"]
    steps = told["timesteps"]
    chosen = {"This schedule": steps, "Even": lanes["DDIM"]["timesteps"]}
    if other := next((lane for name, lane in lanes.items() if name.startswith("DDIM, AYS")), None):
        chosen["Align Your Steps"] = other["timesteps"]
    return {"timesteps": views.timesteps(chosen, alphas_of(config, range(config["num_train_timesteps"]))[:-1]),
            "coefficients": views.triangle((told["wx"], told["we"]), ddim(alphas_of(config, steps))),
            "distance": views.distance({name: lane["gaps"] for name, lane in lanes.items()})}


def write(path, folder):
    """The figures of the coefficients at `path` as PNG files in `folder`."""
    for kind, figure in of_file(json.loads(path.read_text())).items():
        (folder / f"{path.stem}-{kind}.png").write_bytes(views.png(figure))
