"""The scheduler that OLSS needs and diffusers does not have: every next latent is a fitted linear combination.

Duan et al., Optimal Linear Subspace Search, arXiv 2305.14677, section 3: with a network that predicts noise, each latent
of a deterministic sampler is a linear combination of the starting noise and of the network's outputs so far. Samplers
differ in the coefficients alone, and here they are numbers in a file.
"""

import math

import torch
from diffusers import ConfigMixin, DDIMScheduler, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput

BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "set_alpha_to_one")


def ddim(alphas):
    """DDIM as coefficients of the starting noise and the outputs: (wx, we), wx[i] a number, we[i] a list of i + 1.

    alphas: cumulative alphas (abar) at the n timesteps and, last, where the n-th step ends: n + 1 numbers in 0..1.
    One step is x' = a x + b e with a = sqrt(abar' / abar) and b = sqrt(1 - abar') - a sqrt(1 - abar). DDIM, arXiv
    2010.02502, equation 12 with sigma = 0.
    """
    wx, we, row, start = [], [], [], 1.0
    for now, after in zip(alphas, alphas[1:]):
        a = math.sqrt(after / now)
        b = math.sqrt(1 - after) - a * math.sqrt(1 - now)
        start, row = a * start, [a * weight for weight in row] + [b]
        wx.append(start)
        we.append(row)
    return wx, we


def noise_schedule(config):
    """The BETAS of a scheduler's configuration, in the form in which two can be compared."""
    told = {name: config.get(name) for name in BETAS}
    trained = None if told["trained_betas"] is None else list(map(float, told["trained_betas"]))
    return told | {"trained_betas": trained, "set_alpha_to_one": bool(told["set_alpha_to_one"])}


def alphas_of(config, timesteps):
    """Cumulative alphas on the noise schedule of `config` at n timesteps and where the last step ends: n + 1 floats."""
    own = DDIMScheduler(**noise_schedule(config))
    return [*own.alphas_cumprod[list(timesteps)].tolist(), float(own.final_alpha_cumprod)]


class OLSSScheduler(SchedulerMixin, ConfigMixin):
    """x_i+1 = wx[i] x_T + sum over j <= i of we[i][j] e_j, with x_T the latent of the first step and e_j the output of
    step j. What comes in as later samples is not read: an edit of the latents between two steps is lost.

    timesteps: n whole numbers that fall, the first one where noise starts; wx: n numbers; we: n rows, of 1, 2, ... n
    numbers; fitted: plain values that say what the coefficients belong to. The rest describes the noise schedule as
    diffusers does; only networks that predict epsilon. ValueError with a sentence for anything else.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(self, timesteps, wx, we, num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012,
                 beta_schedule="scaled_linear", trained_betas=None, set_alpha_to_one=False, prediction_type="epsilon",
                 fitted=None):
        check(timesteps, wx, we, num_train_timesteps)
        if prediction_type != "epsilon":
            raise ValueError(f"OLSS adds up predictions of noise, and this network predicts {prediction_type}.")
        self.num_inference_steps = None
        self.timesteps = torch.tensor(timesteps)
        self.start, self.outputs = None, []

    def __len__(self):
        return self.config.num_train_timesteps

    def set_timesteps(self, num_inference_steps=None, device=None):
        """Forgets the last run. ValueError unless the steps are those that the coefficients were fitted for."""
        steps = len(self.config.timesteps)
        if num_inference_steps not in (None, steps):
            raise ValueError(f"These coefficients are for {steps} steps, not {num_inference_steps}.")
        self.num_inference_steps = steps
        self.timesteps = torch.tensor(self.config.timesteps, device=device)
        self.start, self.outputs = None, []

    def scale_model_input(self, sample, timestep=None):
        return sample

    def step(self, model_output, timestep, sample, return_dict=True):
        """The latent after this step, of the shape and type of `sample`. Sums are float32 whatever the network's type.

        ValueError for a run that begins elsewhere than at the first timestep, or goes on after the last.
        """
        i = len(self.outputs)
        if self.num_inference_steps is None:
            raise ValueError("Call set_timesteps first.")
        if i == self.num_inference_steps or (i == 0 and int(timestep) != self.config.timesteps[0]):  # one wait at most
            raise ValueError("OLSS starts from pure noise and takes all of its steps: call set_timesteps for a new run.")
        if i == 0:
            self.start = sample.float()
        self.outputs.append(model_output.float())
        after = self.config.wx[i] * self.start
        for weight, output in zip(self.config.we[i], self.outputs, strict=True):
            after = after.add(output, alpha=weight)
        after = after.to(sample.dtype)
        return SchedulerOutput(prev_sample=after) if return_dict else (after,)


def check(timesteps, wx, we, train):
    """ValueError with a sentence unless these are the coefficients of a whole run."""
    steps = len(timesteps)
    if not steps or not all(isinstance(t, int) and 0 <= t < train for t in timesteps):
        raise ValueError(f"timesteps must be whole numbers from 0 to {train - 1}")
    if any(now <= after for now, after in zip(timesteps, timesteps[1:])):
        raise ValueError("timesteps must fall")
    if len(wx) != steps or [len(row) for row in we] != list(range(1, steps + 1)):
        raise ValueError(f"{steps} timesteps need {steps} wx and rows of 1 to {steps} we")
    if not all(isinstance(weight, float) and math.isfinite(weight) for row in (wx, *we) for weight in row):
        raise ValueError("coefficients must be finite numbers")
