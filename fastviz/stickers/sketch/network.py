"""The network that reads a sketch: diffusers' ControlNetModel, with the teacher's convolutions and none of its attention.

Zhang et al., arXiv 2302.05543, section 3: a copy of the way down reads noisy latents and condition, and adds what it finds,
through convolutions that begin at zero, to what the frozen U-Net hands across. What stands where is all that a sketch has to
say, so the prompt is not read here, and the residuals are the same with and without it. The class has no way to do without a
middle block; the one without attention is its smallest.
"""

from types import SimpleNamespace

import torch
from diffusers import ControlNetModel

from .. import world
from . import outline

EMBEDDING = (8, 16, 32, 64)  # channels of the convolutions that bring the sketch to the latents' size


def untrained(unet):
    """A ControlNetModel for `unet`, a UNet2DConditionModel, that begins with its convolutions and changes nothing yet."""
    told = unet.config
    control = ControlNetModel(
        in_channels=told.in_channels, block_out_channels=told.block_out_channels, layers_per_block=told.layers_per_block,
        down_block_types=("DownBlock2D",) * len(told.block_out_channels), mid_block_type="UNetMidBlock2D",
        norm_num_groups=told.norm_num_groups, cross_attention_dim=told.cross_attention_dim,
        conditioning_embedding_out_channels=EMBEDDING)
    given, own = unet.state_dict(), control.state_dict()
    own |= {name: given[name].clone() for name in own if name in given and own[name].shape == given[name].shape}
    control.load_state_dict(own)
    return control


def condition(sketches):
    """What the network sees of sketches (B, h, w) uint8, black on white: (B, 3, h, w) in 0..1, strokes at 1, so that the
    zeros around a picture are paper too."""
    return (1 - sketches[:, None].float() / 255).expand(-1, 3, -1, -1)


def estimate(unet, control, x, t, text, sketches):
    """The noise estimate (B, 4, h, w) of `unet` with what `control` reads of the sketches; None: without."""
    if sketches is None:
        return unet(x, t, text).sample
    downs, middle = control(x, t, text, condition(sketches), return_dict=False)
    return unet(x, t, text, down_block_additional_residuals=downs, mid_block_additional_residual=middle).sample


def following(unet, control, sketches):
    """`unet` as it is called, following the sketches (B, h, w): for B pictures, or for both halves of guidance."""
    def asked(x, t, text):
        return SimpleNamespace(sample=estimate(unet, control, x, t, text, sketches.repeat(len(x) // len(sketches), 1, 1)))

    return asked


def drawings(scenes):
    """Sketches of scenes, (B, 256, 256) uint8."""
    return torch.stack([torch.frombuffer(bytearray(outline.draw(scene).tobytes()), dtype=torch.uint8).view(world.SIZE, -1)
                        for scene in scenes])
