"""Folders as the public checkpoints have them: the real classes and configurations, at tiny width, with random weights."""

import torch
from diffusers import (AutoencoderKL, AutoencoderTiny, ControlNetModel, DEISMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler,
                       StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from fastviz.stickers import parts

BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
CROSS, PLAIN = "CrossAttn{}Block2D", "{}Block2D"


def sides(*with_attention):
    """Types of the down blocks, finest first, and of the up blocks."""
    kinds = [CROSS if attends else PLAIN for attends in with_attention]
    return dict(down_block_types=tuple(kind.format("Down") for kind in kinds),
                up_block_types=tuple(kind.format("Up") for kind in kinds[::-1]))


def unet(widths, attends, **more):
    return UNet2DConditionModel(sample_size=16, block_out_channels=widths, norm_num_groups=8, **sides(*attends), **more)


def text(words, kind=CLIPTextModel, layers=2, width=32):
    return kind(CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=2,
        max_position_embeddings=parts.LENGTH, projection_dim=width, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id))


def decoder(**more):
    return AutoencoderKL(block_out_channels=(8,) * 4, norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 4,
                         up_block_types=("UpDecoderBlock2D",) * 4, **more)


def tiny_decoder():
    return AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
                           num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4)


def plain(scheduler, network, vae, layers=2, width=32):
    words = parts.tokenizer()
    return StableDiffusionPipeline(vae=vae, text_encoder=text(words, layers=layers, width=width), tokenizer=words,
                                   unet=network, scheduler=scheduler, safety_checker=None, feature_extractor=None,
                                   image_encoder=None, requires_safety_checker=False)


def sd15():
    network = unet((16, 32, 32, 32), (1, 1, 1, 0), cross_attention_dim=32, attention_head_dim=2)
    return plain(PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **BETAS), network, decoder())


def sdxl(layers_per_block=2):
    words = parts.tokenizer()
    network = unet((16, 32, 32), (0, 1, 1), cross_attention_dim=64, attention_head_dim=(2, 2, 2),
                   layers_per_block=layers_per_block, transformer_layers_per_block=(1, 2, 3), use_linear_projection=True, addition_embed_type="text_time",
                   addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 32)
    scheduler = EulerDiscreteScheduler.from_config(dict(
        EulerDiscreteScheduler(timestep_spacing="leading", **BETAS).config, clip_sample=False, set_alpha_to_one=False))
    return StableDiffusionXLPipeline(
        vae=decoder(scaling_factor=0.13025, force_upcast=True), text_encoder=text(words), tokenizer=words,
        text_encoder_2=text(words, CLIPTextModelWithProjection), tokenizer_2=parts.tokenizer(), unet=network,
        scheduler=scheduler, add_watermarker=False)


def sdxs_network(attention=(0, 1, 1), **more):
    return unet((16, 32, 32), attention, layers_per_block=1, mid_block_type=None, attention_head_dim=2, **more)


def sdxs():
    """At the highest resolution it attends to the words alone, twice in each block."""
    scheduler = EulerDiscreteScheduler(timestep_spacing="trailing", **BETAS)
    network = sdxs_network((1, 1, 1), cross_attention_dim=48, only_cross_attention=(True, False, False))
    return plain(scheduler, network, tiny_decoder(), layers=3, width=48)


def sdxs_dreamshaper():
    return plain(DEISMultistepScheduler(**BETAS), sdxs_network(cross_attention_dim=32), tiny_decoder())


def sdxs_control():
    """A ControlNetModel as SDXS's: with attention, so it reads the prompt."""
    return loud(ControlNetModel.from_unet(unet((16, 32, 32), (0, 1, 1), layers_per_block=1, attention_head_dim=2, cross_attention_dim=32),
                                        conditioning_embedding_out_channels=(4, 8, 8, 16)))


def loud(network):
    """A ControlNetModel whose convolutions no longer begin at zero."""
    for layer in (*network.controlnet_down_blocks, network.controlnet_mid_block, network.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(layer.weight, std=0.3)
    return network


def sd_turbo():
    network = unet((16, 32, 32, 32), (1, 1, 1, 0), cross_attention_dim=48, attention_head_dim=(1, 2, 2, 2),
                   use_linear_projection=True)
    scheduler = EulerDiscreteScheduler(timestep_spacing="trailing", **BETAS)
    return plain(scheduler, network, decoder(), layers=3, width=48)


MADE = {"sd15": sd15, "dreamshaper8": sd15, "sdxl": sdxl, "sdxs": sdxs, "sdxs-dreamshaper": sdxs_dreamshaper,
        "sd-turbo": sd_turbo}


def make(key, **more):
    """The pipeline of a key of the table, at tiny width."""
    torch.manual_seed(0)
    pipe = MADE[key](**more)
    pipe.set_progress_bar_config(disable=True)
    for part in filter(lambda part: isinstance(part, torch.nn.Module), pipe.components.values()):
        part.eval().requires_grad_(False)
    return pipe
