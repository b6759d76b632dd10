"""The schedulers of a fit, each ready to run: the full run, fitted coefficients, and the solvers to hold on to and compare
with. All of them end at the noise level at which the full run ends, so that none is charged for noise which that leaves.
"""

import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_utils import AysSchedules

from ..methods import few_step
from ..request import BadRequest
from ..schedulers import OLSSScheduler, alphas_of, ddim, noise_schedule
from .runs import walk

SD = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", trained_betas=None)
SOLVERS = {"ddim": "DDIM", "dpm": "DPM-Solver++ 2M", "unipc": "UniPC"}
AYS = ", AYS timesteps"


def reference(config, steps):
    """The full run: DDIM, trailing, in `steps` steps. BadRequest where there is none to fit to."""
    train = config["num_train_timesteps"]
    if config["prediction_type"] != "epsilon":
        raise BadRequest("model", f"OLSS adds up predictions of noise, and this model predicts {config['prediction_type']}.")
    if train % steps:
        raise BadRequest("reference", f"The steps of the full run must divide {train}: 20, 25, 40, 50, 100 or 200, say.")
    scheduler = DDIMScheduler(**noise_schedule(config), clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    return scheduler


def linear(config, timesteps, coefficients=None, fitted=None):
    """An OLSSScheduler on the noise schedule of `config`. coefficients: (wx, we); None: DDIM's, and so DDIM at chosen
    timesteps: diffusers' own takes strides of 1000 // n, which stray from them where n does not divide 1000."""
    wx, we = coefficients or ddim(alphas_of(config, timesteps))
    scheduler = OLSSScheduler(**noise_schedule(config), prediction_type=config["prediction_type"],
                              timesteps=list(timesteps), wx=wx, we=we, fitted=fitted)
    scheduler.set_timesteps()
    return scheduler


def multistep(config, solver):
    """DPM-Solver++ 2M ("dpm") or UniPC ("unipc"), evenly spaced, its number of steps still to be set."""
    last = "zero" if noise_schedule(config)["set_alpha_to_one"] else "sigma_min"
    return few_step.scheduler(solver, {**config, "timestep_spacing": "trailing", "final_sigmas_type": last})


def at(config, solver, timesteps):
    """One of SOLVERS at chosen timesteps. UniPC's set_timesteps has no place for them."""
    if solver == "ddim":
        return linear(config, timesteps)
    scheduler = multistep(config, solver)
    scheduler.set_timesteps(len(timesteps))
    own = scheduler.alphas_cumprod[timesteps]
    scheduler.timesteps = torch.tensor(timesteps)
    scheduler.sigmas = torch.cat([((1 - own) / own).sqrt(), scheduler.sigmas[-1:]])
    return scheduler


def combination(scheduler):
    """(wx, we) of any scheduler whose steps are linear in latents and outputs: what it makes of one unit vector as starting
    noise and another as each output."""
    units = torch.eye(len(scheduler.timesteps) + 1, dtype=torch.double)[:, None]  # a batch of one

    def network(x, t, answers=iter(units[1:])):
        return next(answers)

    _, *rows = [x[0].tolist() for x, _ in walk(scheduler, network, units[0])]
    return [row[0] for row in rows], [row[1:i + 2] for i, row in enumerate(rows)]


def even(config, n):
    """Trailing timesteps, as diffusers spaces them."""
    scheduler = multistep(config, "dpm")
    scheduler.set_timesteps(n)
    return scheduler.timesteps.tolist()


def ays(config, n):
    """The timesteps published for Stable Diffusion 1.5 (Sabour et al., Align Your Steps, arXiv 2404.14507), for n other than
    10 interpolated as the authors recommend, in the logarithm of the noise level; None for a model with other betas, or
    when there are not so many different ones."""
    if {name: noise_schedule(config)[name] for name in SD} != SD:
        return None
    own = DDIMScheduler(**noise_schedule(config)).alphas_cumprod.double()
    levels = ((1 - own) / own).sqrt().log()  # rises with t
    published = levels[[*AysSchedules["StableDiffusionTimesteps"], 0]]
    places = torch.linspace(0, len(published) - 1, n + 1, dtype=torch.double)[:-1]
    low = places.floor().long()
    wanted = torch.lerp(published[low], published[low + 1], places - low)
    found = (levels[None] - wanted[:, None]).abs().argmin(1).tolist()
    return found if len(set(found)) == n else None


def peers(config, n):
    """{name: scheduler} of every solver in n steps: evenly spaced and, where they apply, at the AYS timesteps."""
    spacings = {"": even(config, n), AYS: ays(config, n)}
    return {name + how: at(config, solver, timesteps) for solver, name in SOLVERS.items()
            for how, timesteps in spacings.items() if timesteps}
