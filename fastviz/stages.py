"""What the stages of a U-Net weigh: parameters, and FLOPs of one call counted from executed operations."""

import torch

from .cost import Flops
from .models import quiet


def parts_of(unet):
    """{(side, level): module}: side "down", "middle" or "up"; level 0 is the highest resolution."""
    found = {("down", level): block for level, block in enumerate(unet.down_blocks)}
    if unet.mid_block is not None:
        found["middle", len(unet.down_blocks) - 1] = unet.mid_block
    return found | {("up", len(unet.up_blocks) - 1 - i): block for i, block in enumerate(unet.up_blocks)}


@torch.no_grad()
def stages(unet, side=32, tokens=24):
    """[{"side", "level", "transformers", "parameters", "flops"}] in order of execution, last the whole network as side
    "all". Counted on the meta device for one picture of side x side latents."""
    with quiet(), torch.device("meta"):
        bare = type(unet).from_config(unet.config)
        x, text = torch.empty(1, unet.config.in_channels, side, side), torch.empty(1, tokens, unet.config.cross_attention_dim)
        t = torch.empty((), dtype=torch.long)
    mode, begun, spent = Flops(), {}, {}
    for key, part in (parts := parts_of(bare)).items():
        part.register_forward_pre_hook(lambda module, args, key=key: begun.update({key: mode.total}))
        part.register_forward_hook(lambda module, args, out, key=key: spent.update({key: mode.total - begun[key]}))
    with mode:
        bare(x, t, text)
    found = [(key, part, spent[key]) for key, part in parts.items()] + [(("all", 0), bare, mode.total)]
    return [{"side": key[0], "level": key[1], "transformers": sum(hasattr(module, "attn1") for module in part.modules()),
             "parameters": sum(weight.numel() for weight in part.parameters()), "flops": flops} for key, part, flops in found]
