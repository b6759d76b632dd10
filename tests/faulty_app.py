"""tiny_app.py on a machine that fails where the seed says, in the row of token merging, or everywhere."""

import sys

import tiny_app

PLACES = {101: "first step", 102: "middle step", 103: "last step", 104: "decoder", 105: "LPIPS", 106: "trace"}
LOST, FULL = 113, 121  # the device is lost; the full model runs out of memory


class Fault:
    """What is under way: the request, its stack, whether it is traced, and how often the network was called."""
    seed, merging, traced, calls, steps = 0, False, False, 0, 0

    def at(self, place):
        if self.merging and PLACES.get(self.seed) == place and self.traced == (place == "trace"):
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB")


fault = Fault()


def break_things():
    import torch
    from diffusers import AutoencoderTiny, UNet2DConditionModel

    from fastviz import metrics, run, trace
    from fastviz.methods import tome

    def sample(pipe, request, stack, steps, on_step, stop, record, *others):
        fault.seed, fault.merging, fault.traced = request.seed, type(stack[0]) is tome.Knobs, record is not None
        fault.calls, fault.steps = 0, steps
        return run_sample(pipe, request, stack, steps, on_step, stop, record, *others)

    def forward(self, *told, **named):
        fault.calls += 1
        answer = network(self, *told, **named)
        for place, call in (("first step", 1), ("middle step", fault.steps // 2), ("last step", fault.steps)):
            if fault.steps > run.WARM_UP_STEPS and fault.calls == call:
                fault.at(place)
        if fault.seed == LOST:
            run.alive = lambda: False
            raise torch.AcceleratorError("CUDA error: unspecified launch failure", 719)
        if fault.seed == FULL:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB")
        return answer

    def decode(self, *told, **named):
        fault.at("decoder")
        return decoder(self, *told, **named)

    def lpips_score(*pair):
        fault.at("LPIPS")
        return score(*pair)

    def add(self, *told):
        fault.at("trace")
        return record(self, *told)

    run_sample, run.sample = run.sample, sample
    network, UNet2DConditionModel.forward = UNet2DConditionModel.forward, forward
    decoder, AutoencoderTiny.decode = AutoencoderTiny.decode, decode
    score, metrics.lpips_score = metrics.lpips_score, lpips_score
    record, trace.Trace.add = trace.Trace.add, add


if __name__ == "__main__":
    sys.path.insert(0, ".")
    break_things()
    tiny_app.main()
