"""Networks of published configurations with random weights, to be timed: nothing is downloaded, and no picture is judged."""

from contextlib import contextmanager

import torch

from .flops import SDXL, WORDS

SD15 = dict(sample_size=64, cross_attention_dim=768)  # Stable Diffusion 1.5; the rest is diffusers' default
# IDKiro/sdxs-512-0.9: SD 2.1 without middle, deepest stage and self-attention at the highest resolution, whose blocks attend to
# the words twice. Its published file of 1 312 752 864 bytes holds as many parameters in single precision, 328.2 million
SDXS_512 = dict(
    sample_size=64, layers_per_block=1, block_out_channels=(320, 640, 1280), mid_block_type=None, cross_attention_dim=1024,
    down_block_types=("CrossAttnDownBlock2D",) * 3, up_block_types=("CrossAttnUpBlock2D",) * 3, attention_head_dim=(5, 10, 20),
    only_cross_attention=(True, False, False), use_linear_projection=True)
# Not published: SDXL made smaller in the same way, with 0.78 billion parameters where the paper counts 0.74
SDXS_1024 = SDXL | dict(layers_per_block=1, mid_block_type=None, transformer_layers_per_block=(1, 2, 5))
CONFIGS = {"SD 1.5": SD15, "SDXL": SDXL, "SDXS-512": SDXS_512, "SDXS-1024": SDXS_1024}
ONE_STEP = ("SDXS-512", "SDXS-1024")


@contextmanager
def made_on(device, dtype):
    """Makes modules where and as they are needed: a network of SDXL's size is slow to move and to convert."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def unet_of(config, device, dtype):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    with made_on(device, dtype):
        return UNet2DConditionModel(**config).eval().requires_grad_(False)


def decoder_of(device, dtype, **told):
    """A tiny autoencoder, as SDXS has it; told: its sizes, if not the published ones."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    with made_on(device, dtype):
        return AutoencoderTiny(**told).eval().requires_grad_(False)


def inputs(config, side, batch, device, dtype):
    """What a call of the network takes, for latents of side x side, `batch` of them: keyword arguments."""
    draw = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(batch, *shape, generator=draw).to(device, dtype)

    told = dict(sample=random(4, side, side), timestep=torch.tensor(500, device=device),
                encoder_hidden_states=random(WORDS, config["cross_attention_dim"]))
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        told["added_cond_kwargs"] = {"text_embeds": random(pooled), "time_ids": random(6)}
    return told
