"""The student's networks: the teacher's U-Net without its heaviest parts, and a thinner decoder.

SDXS, arXiv 2403.16627, section on architecture: the middle, the lowest stage and the attention at the highest resolution
are dropped; what remains begins with the teacher's weights. The student is asked once, at the noisiest timestep.
"""

import torch
from diffusers import AutoencoderTiny, EulerDiscreteScheduler, UNet2DConditionModel

LAST = 999  # the timestep that the student is asked at


# The U-Net

def small_unet(teacher):
    """An untrained U-Net of the stages that are kept, with random weights. teacher: the UNet2DConditionModel to shrink: at
    least two stages, attention at the highest resolution. Decoder transformers keep half of their blocks."""
    told = teacher.config
    depths = told.transformer_layers_per_block[:-1]
    config = {key: value for key, value in told.items() if not key.startswith("_")} | dict(
        block_out_channels=told.block_out_channels[:-1], attention_head_dim=told.attention_head_dim[:-1], mid_block_type=None,
        down_block_types=("DownBlock2D", *told.down_block_types[1:-1]), up_block_types=(*told.up_block_types[1:-1], "UpBlock2D"),
        transformer_layers_per_block=depths, reverse_transformer_layers_per_block=[max(1, n // 2) for n in reversed(depths)])
    return UNet2DConditionModel(**config)


def theirs(name):
    """The teacher's name of a student's weight: the teacher's first up stage has no counterpart."""
    parts = name.split(".")
    return ".".join([parts[0], str(int(parts[1]) + 1), *parts[2:]]) if parts[0] == "up_blocks" else name


@torch.no_grad()
def inherit(student, teacher):
    """Copies every weight of the student's that the teacher has. Returns the names that fit only in part: of the first
    convolution after the dropped stages, which is narrower, the channels that read the skip connection are copied and
    the others begin at zero."""
    given, partly, skip = teacher.state_dict(), [], student.config.block_out_channels[-1]
    for name, weight in student.state_dict().items():
        source = given[theirs(name)].to(weight)
        if source.shape != weight.shape:
            partly.append(name)
            axis = 1 if weight.ndim == 4 else 0
            if axis:
                weight.zero_()
            weight, source = (each.narrow(axis, each.shape[axis] - skip, skip) for each in (weight, source))
        weight.copy_(source)
    return partly


def student_of(teacher):
    """The small U-Net with all that it can inherit."""
    student = small_unet(teacher)
    inherit(student, teacher)
    return student


def parameters(module):
    return sum(weight.numel() for weight in module.parameters())


# One step

def scheduler(config, answer="v_prediction"):
    """Euler in one step on the betas of `config`, for a network that answers with the velocity, see `estimated`, or "epsilon"."""
    betas = {name: config[name] for name in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")}
    return EulerDiscreteScheduler(**betas, timestep_spacing="trailing", steps_offset=1, prediction_type=answer)


def noised(clean, noise, alpha):
    """The forward process, in single precision. alpha: (B,) cumulative alphas."""
    a = alpha.view(-1, 1, 1, 1).float()
    return a.sqrt() * clean.float() + (1 - a).sqrt() * noise.float()


def denoised(noisy, epsilon, alpha):
    """The clean latents that an estimate of the noise stands for, in single precision."""
    a = alpha.view(-1, 1, 1, 1).float()
    return (noisy.float() - (1 - a).sqrt() * epsilon.float()) / a.sqrt()


def one_step(unet, noise, text, alphas):
    """The student's latents (B, 4, h, w) for noise of deviation 1 and embedded captions text (B, 24, D)."""
    t = torch.full((len(noise),), LAST, device=noise.device)
    return estimated(unet, (1 - alphas[LAST]).sqrt() * noise, t, text, alphas)  # what Euler's scheduler shows the network


def estimated(unet, noisy, t, text, alphas):
    """The student's estimate of the clean latents, from its estimate of the velocity (Salimans and Ho, arXiv 2202.00512, appendix D).
    The teacher's own answer is the noise, from which clean latents follow by a division: at the noisiest timestep every error of
    the student's would count 14.6 times."""
    a = alphas[t].view(-1, 1, 1, 1).float()
    return a.sqrt() * noisy.float() - (1 - a).sqrt() * unet(noisy.float(), t, text.float()).sample.float()


def begin(unet):
    """The student's U-Net after distillation, where it answers with the noise as the teacher does, made ready to answer with the
    velocity: it begins with none. Returns it."""
    for weight in unet.conv_out.parameters():
        torch.nn.init.zeros_(weight)
    return unet


# What a U-Net computes inside

def downwards(unet, x, t, text):
    """The way down: (sample, outputs of the first convolution and of every layer, time embedding)."""
    embedding = unet.time_embedding(unet.time_proj(t).to(x.dtype))
    x = unet.conv_in(x)
    outputs = (x,)
    for block in unet.down_blocks:
        attends = getattr(block, "has_cross_attention", False)
        x, more = block(x, embedding, encoder_hidden_states=text) if attends else block(x, embedding)
        outputs += more
    return x, outputs, embedding


def inside(unet, x, t, text):
    """(noise estimate, outputs of the layers on the way down, outputs of the up stages): equal to unet(x, t, text)."""
    x, downs, embedding = downwards(unet, x, t, text)
    if unet.mid_block is not None:
        x = unet.mid_block(x, embedding)
    left, ups = downs, []
    for block in unet.up_blocks:
        left, skips = left[:-len(block.resnets)], left[-len(block.resnets):]
        attends = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
        x = block(hidden_states=x, temb=embedding, res_hidden_states_tuple=skips, **attends)
        ups.append(x)
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(x))), downs, ups


# The decoder

def small_vae(teacher):
    """An AutoencoderTiny whose encoder is `teacher`'s own (an AutoencoderTiny) and whose decoder is untrained: half as wide, with one
    block fewer on the latents' grid."""
    kept = ("encoder_block_out_channels", "num_encoder_blocks", "latent_channels", "scaling_factor")
    coarsest, *finer = teacher.config.num_decoder_blocks
    vae = AutoencoderTiny(**{key: teacher.config[key] for key in kept}, num_decoder_blocks=[coarsest - 1, *finer],
                          decoder_block_out_channels=[width // 2 for width in teacher.config.decoder_block_out_channels])
    vae.encoder.load_state_dict(teacher.encoder.state_dict())
    return vae
