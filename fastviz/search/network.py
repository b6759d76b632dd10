"""The network as a function of latents and timestep, for a batch of prompts."""

import torch

from ..run import encoded, guided, network_inputs, noise


class Network:
    """The output after guidance, e(x, t), of a pipeline's U-Net for a fixed batch of Requests, alike but for prompt and
    seed. start: their noise, (B, 4, h, w); calls: how often it was asked; on_call(prompts): told after each."""

    @torch.no_grad()
    def __init__(self, pipe, requests, on_call=lambda prompts: None):
        self.pipe, self.guidance, self.pair = pipe, requests[0].guidance, guided(pipe, requests[0])
        self.calls, self.on_call = 0, on_call
        made = encoded(pipe, [request.prompt for request in requests], self.pair, pipe.device)
        self.told = network_inputs(made, requests[0].size)
        self.start = torch.cat([noise(pipe, request) for request in requests]).to(pipe.device)

    @torch.no_grad()
    def __call__(self, x, t):
        """x (B, 4, h, w) of the pipeline's type -> (B, 4, h, w)."""
        both = torch.cat([x] * 2) if self.pair else x
        e = self.pipe.unet(both, t, **self.told, return_dict=False)[0]
        if self.pair:
            without, given = e.chunk(2)
            e = without + self.guidance * (given - without)
        self.calls += 1
        self.on_call(len(x))
        return e
