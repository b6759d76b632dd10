"""FLOPs of a sampling step of SDXL at 1024 px, full and with AT-EDM, from operations executed on the meta device.

The network is diffusers' own class with SDXL's published configuration, without weights; AT-EDM is attached to it as to
any other. "network" is the U-Net, which is what the paper counts; "choosing" is what ranking tokens and finding the ones
to copy from adds, which depends on how votes are counted, and of which the paper says nothing. The batch is one and a
multiply-add counts as 2 FLOP. So counted, the full step meets the paper's 6.7 TFLOP; but so it would in multiply-adds of
a guided step, which runs the network on a pair: figures per step cannot tell the two conventions apart.
"""

import argparse
import json
from contextlib import contextmanager
from dataclasses import replace
from statistics import mean
from types import SimpleNamespace

import torch

from ..cost import Flops
from ..methods import atedm
from ..patch import replaced
from ..trace import Context

SDXL = dict(  # stabilityai/stable-diffusion-xl-base-1.0, unet/config.json
    sample_size=128, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20), cross_attention_dim=2048,
    use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816)
WORDS = 77
STEPS = 50
PAPER = {"full": 6.7, "AT-EDM": 4.1, "AT-EDM dagger": 4.5}  # TFLOP per step as published
VARIANTS = {"full": atedm.Knobs(ratio=0.0, tau=0, every=1), "AT-EDM": atedm.Knobs(),
            "AT-EDM dagger": atedm.Knobs(finest=False)}
WAYS = ("tiles", "fused", "held")


def network(config):
    """A U-Net of this configuration on the meta device."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**config).eval().requires_grad_(False)


def inputs(config):
    """What one call of the network takes, batch 1."""
    def empty(*shape):
        return torch.empty(shape, device="meta")

    side = config["sample_size"]
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    return dict(sample=empty(1, config["in_channels"], side, side), timestep=empty(),
                encoder_hidden_states=empty(1, WORDS, config["cross_attention_dim"]),
                added_cond_kwargs={"text_embeds": empty(1, pooled), "time_ids": empty(1, 6)})


@contextmanager
def counting(mode):
    """Yields a dict whose "choosing" is what choosing tokens took, while AT-EDM is attached within the block."""
    spent = {"choosing": 0}

    class Counted(atedm.Pruning):
        def choose(self, *args):
            before = mode.total
            try:
                return super().choose(*args)
            finally:
                spent["choosing"] += mode.total - before

    with replaced(atedm, Pruning=Counted):
        yield spent


@torch.no_grad()
def per_step(unet, config, knobs):
    """[(network, choosing)] of all 50 steps, in FLOP; equal steps are executed once."""
    context, mode, found = Context(STEPS, grid=(config["sample_size"],) * 2), Flops(), {}
    labels = atedm.kinds(knobs, STEPS)
    with mode, counting(mode) as spent, atedm.attach(SimpleNamespace(unet=unet), knobs, context) as pipe:
        for step, label in enumerate(labels):
            if label not in found:
                context.start(step)
                mode.total = spent["choosing"] = 0
                pipe.unet(**inputs(config))
                found[label] = mode.total - spent["choosing"], spent["choosing"]
    return [found[label] for label in labels]


def row_of(unet, config, name, knobs):
    """What the table and the JSON say of one variant, in TFLOP per step."""
    tau, ways = atedm.early_steps(knobs, STEPS), {}
    for way in WAYS if knobs.ratio else ():
        steps = per_step(unet, config, replace(knobs, map=way))
        ways[way] = {"once": steps[tau][1] / 1e12, "with_network": mean(map(sum, steps[tau:])) / 1e12}
    network = [network / 1e12 for network, _ in (steps if ways else per_step(unet, config, knobs))]
    return {"name": name, "early": network[0], "after_tau": network[-1], "mean": mean(network), "paper": PAPER[name],
            "off": network[-1] / PAPER[name] - 1, "choosing": ways}


def table(rows):
    """Aligned text, one line per variant."""
    lines = [("TFLOP per step", "early", "after tau", "mean of 50", "paper", "off", *(f"+ {way}" for way in WAYS))]
    for row in rows:
        told = [f"{row[key]:.3f}" for key in ("early", "after_tau", "mean")]
        ways = [f"{row['choosing'][way]['once']:.3f}" for way in WAYS if row["choosing"]]
        lines.append((row["name"], *told, f"{row['paper']:.1f}", f"{row['off']:+.1%}", *ways))
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(len(lines[0]))]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def main(argv=None, config=SDXL):
    argparse.ArgumentParser(prog="python -m fastviz bench flops", description=__doc__.splitlines()[0]).parse_args(argv)
    unet = network(config)
    rows = [row_of(unet, config, name, knobs) for name, knobs in VARIANTS.items()]
    every = VARIANTS["AT-EDM"].every
    print(f"SDXL, {8 * config['sample_size']} px, batch 1, 2 FLOP per multiply-add; off: after tau against the paper.")
    print(f"+: choosing, once every {every} steps after tau, by how votes are counted; not in the columns before.\n")
    print(table(rows), end="\n\n")
    print(json.dumps({"bench": "flops", "steps": STEPS, "every": every, "tflop_per_step": rows}, allow_nan=False))


if __name__ == "__main__":
    main()
