"""The untrained parts of the embedded model, all diffusers' and transformers' own classes."""

import json
import tempfile
from pathlib import Path

from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .words import vocabulary

LENGTH = 24  # token positions, start and end included
START, END = "<|startoftext|>", "<|endoftext|>"


def pieces(word, ranks):
    """Byte-pair encoding of one word: joins the pair of lowest rank until none is left."""
    parts = [*word[:-1], word[-1] + "</w>"]
    while pairs := [pair for pair in zip(parts, parts[1:]) if pair in ranks]:
        i = list(zip(parts, parts[1:])).index(min(pairs, key=ranks.get))
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return parts


def tokenizer(words=None):
    """A CLIPTokenizer in which every word of the world is one token; other words fall into pieces.

    Each word is taken apart with the merges so far and its pieces are joined by new merges of lower rank, which can
    never break an earlier word.
    """
    words = vocabulary() if words is None else words
    letters = [chr(c) for c in range(33, 127)]
    tokens, ranks = [*letters, *(c + "</w>" for c in letters)], {}
    for word in words:
        left, *rest = pieces(word, ranks)
        for right in rest:
            ranks[left, right] = len(ranks)
            left += right
            tokens.append(left)
    merges = list(ranks)
    tokens = list(dict.fromkeys([*tokens, START, END]))
    with tempfile.TemporaryDirectory() as folder:
        vocab, merge = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab.write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        merge.write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
        return CLIPTokenizer(str(vocab), str(merge), model_max_length=LENGTH, pad_token=END)


def text_encoder(tokens, width=256, layers=3):
    """An untrained CLIPTextModel for `tokens`, a CLIPTokenizer."""
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64), max_position_embeddings=LENGTH, projection_dim=width,
        bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id,
    ))


SIZES = {"small": dict(widths=(48, 128, 192), depths=(2, 2, 1), heads=(1, 4, 6)),
         "large": dict(widths=(64, 160, 256), depths=(2, 3, 1), heads=(1, 5, 8))}  # where a GPU trains it


def unet(widths=SIZES["small"]["widths"], depths=SIZES["small"]["depths"], heads=SIZES["small"]["heads"], context=256):
    """An untrained U-Net shaped like SDXL's: deep transformers at the two upper resolutions, none at the lowest."""
    return UNet2DConditionModel(
        sample_size=32, in_channels=4, out_channels=4, block_out_channels=widths, layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"), mid_block_type="UNetMidBlock2D",
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), transformer_layers_per_block=depths,
        attention_head_dim=heads, cross_attention_dim=context, use_linear_projection=True, norm_num_groups=16,
    )


def scheduler():
    """DDIM on Stable Diffusion's betas, trailing spacing, so that the first step starts from pure noise at t = 999."""
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                         set_alpha_to_one=False, steps_offset=1, timestep_spacing="trailing")
