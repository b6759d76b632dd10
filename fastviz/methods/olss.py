"""A few large steps whose coefficients were fitted to full runs of the same model.

Changed: the scheduler and the number of steps. Duan et al., Optimal Linear Subspace Search, arXiv 2305.14677. The
coefficients come from `python -m fastviz fit olss`, one file per model, guidance, number of steps and choice of
timesteps; schedulers.py applies them.
"""

import json
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from .. import fitted, models
from ..knobs import choice, number
from ..patch import Refused, replaced

KEY = "olss"
TITLE = "Fitted schedule"
SAYS = "Takes few steps, each fitted beforehand to land where the full model goes."
PAPER = ("Duan et al., Optimal Linear Subspace Search", "https://arxiv.org/abs/2305.14677")
ROLE = "scheduler"

SEARCHES = {"olss": "OLSS: searched", "olss-p": "OLSS-P: even", "ays": "Align Your Steps"}
MOST = 100  # steps


@dataclass(frozen=True)
class Knobs:
    """steps = 0 is the full model."""
    steps: int = number(10, 0, MOST, "Fewer is faster and further from the full model; only numbers that were fitted. 0 is "
                        "the full model.")
    search: str = choice("olss", SEARCHES, "Which timesteps the network sees: those that the fit found best, even ones, or "
                         "the published ones of another method. The coefficients are fitted to each.")


NEUTRAL = Knobs(steps=0)


def plan(knobs, steps):
    """The number of steps that a row with these knobs takes when the request asks for `steps`."""
    return knobs.steps or steps


def kinds(knobs, steps):
    """One label per step: all steps do the same work."""
    return ("olss",) * steps


# Files of coefficients

def path_of(folder, search, steps, guidance):
    """Where the coefficients for the model in `folder` lie, beside it: a scheduler configuration as diffusers reads it."""
    return fitted.beside(folder, "olss") / f"{search}-{steps}-guidance-{guidance:g}.json"


def load(folder, search, steps, guidance):
    """The scheduler with the coefficients for a run of the model in `folder`. Refused when there are none, or when they
    belong to something else: the text names the command that makes the right ones."""
    if folder is None:
        raise Refused("Fitted coefficients lie beside a model's files, and this model has none: choose another scheduler.")
    path = path_of(folder, search, steps, guidance)
    name = path.relative_to(folder.parents[1]).as_posix()
    command = (f"`python -m fastviz fit olss {models.model_argument(folder)} --steps {steps} --guidance {guidance:g}"
               f"{'' if search == 'olss' else f' --search {search}'}`")
    if not path.is_file():
        known = [n for n in range(1, MOST + 1) if path_of(folder, search, n, guidance).is_file()]
        others = f"choose {', '.join(map(str, known))} steps, or " if known else ""
        raise Refused(f"There are no coefficients {name}: {others}make them with {command}.")
    try:
        from ..schedulers import OLSSScheduler

        scheduler = OLSSScheduler.from_config(dict(json.loads(path.read_text())))
        told = {key: scheduler.config.fitted[key] for key in ("guidance", "weights")}
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise Refused(f"{name} cannot be read ({error}): delete it and make it with {command}.") from error
    for key, right, what in (("guidance", guidance, "another guidance"), ("weights", fitted.weights(folder), "other weights")):
        if told[key] != right:
            raise Refused(f"{name} was fitted to {what}: make it anew with {command}.")
    if len(scheduler.config.timesteps) != steps:
        raise Refused(f"{name} holds {len(scheduler.config.timesteps)} steps, not {steps}: make it anew with {command}.")
    return scheduler


def fits(scheduler, own):
    """Refused unless the pipeline's own scheduler adds noise as the one that the coefficients were fitted to."""
    from ..schedulers import noise_schedule

    if own.config.prediction_type != "epsilon" or noise_schedule(own.config) != noise_schedule(scheduler.config):
        raise Refused("The coefficients were fitted to another noise schedule than this model's: fit them to this model.")


def explained(told):
    """What pictures of a schedule are drawn from: told is a configuration as the fit saves it. -> {"timesteps" and "gaps", the
    distances from the full run's path: {name: one per step}, "alphas": cumulative, by timestep, "fitted" and "ddim": (wx, we)}"""
    from ..schedulers import BETAS, alphas_of, ddim

    config, lanes = {name: told[name] for name in BETAS}, told["fitted"]["measured"]
    chosen = {"This schedule": told["timesteps"], "Even": lanes["DDIM"]["timesteps"]}
    if other := next((lane for name, lane in lanes.items() if name.startswith("DDIM, AYS")), None):
        chosen["Align Your Steps"] = other["timesteps"]
    return {"timesteps": chosen, "alphas": alphas_of(config, range(config["num_train_timesteps"]))[:-1], "fitted": (told["wx"], told["we"]),
            "ddim": ddim(alphas_of(config, told["timesteps"])), "gaps": {name: lane["gaps"] for name, lane in lanes.items()}}


# What a traced run records

def recording(scheduler, context):
    """scheduler.step that also records, as root mean squares: `olss.terms`, of each term of the sum (the starting noise,
    then every output so far), and `olss.from_ddim`, of the gap to where DDIM would have stepped from the same latent."""
    from ..schedulers import alphas_of, ddim

    step, alphas = scheduler.step, alphas_of(scheduler.config, scheduler.config.timesteps)

    def recorded(model_output, timestep, sample, return_dict=True):
        i, add = context.step, context.trace.add
        answer = step(model_output, timestep, sample, return_dict=return_dict)
        terms = zip((scheduler.config.wx[i], *scheduler.config.we[i]), (scheduler.start, *scheduler.outputs), strict=True)
        add("olss.terms", i, "scheduler", [abs(weight) * float(part.square().mean().sqrt()) for weight, part in terms])
        (a,), ((b,),) = ddim(alphas[i:i + 2])
        gap = (answer[0].float() - a * sample.float() - b * model_output.float()).square().mean().sqrt()
        add("olss.from_ddim", i, "scheduler", gap)
        return answer

    return recorded


@contextmanager
def attach(pipe, knobs, context):
    """Modifications:
     - pipe.scheduler; none with neutral knobs
    The number of steps is the run's own: see `plan`. Refused when no coefficients belong to this run."""
    with ExitStack() as exits:
        if knobs.steps:
            scheduler = load(fitted.folder(pipe), knobs.search, context.steps, context.guidance)
            fits(scheduler, pipe.scheduler)
            context.acted[KEY] |= {("scheduler", step) for step in range(context.steps)}
            exits.enter_context(replaced(pipe, scheduler=scheduler))
            if context.trace is not None:
                exits.enter_context(replaced(scheduler, step=recording(scheduler, context)))
        yield pipe
