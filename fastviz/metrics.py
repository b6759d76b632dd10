"""How close a picture is to the full model's: LPIPS, PSNR, SSIM, prompt match. A value or a reason, never a guess.

All of it measures closeness or agreement with the prompt, not quality: a one-step model may look good and score badly.
"""

import functools
import os
import urllib.request
import warnings
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from . import models, verified
from .models import MODELS
from .verified import BadModel

BACKBONES = {  # in order of preference; the name ends with the first 8 hex digits of the file's sha256
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
SOURCE = "https://download.pytorch.org/models/"
STICKERS_LPIPS = "LPIPS (stickers backbone)"
LPIPS_TOP = 1.0  # LPIPS per pixel at which its map is brightest; without learned weights half of one per layer is
DIFFERENCE_TOP = 0.5  # absolute difference, mean of the three channels in 0..1, at which its map is brightest


class Unavailable(RuntimeError):
    """A metric cannot be had here. The text is the reason and what to do."""


def backbone_path(net):
    return Path(torch.hub.get_dir()) / "checkpoints" / BACKBONES[net]


def backbone_fault(net):
    """"" when the backbone of `net` lies on this disk unchanged, else why it cannot be used."""
    path = backbone_path(net)
    if not path.is_file():
        return f"no {path.name}"
    if not verified.sha256(path).startswith(told := path.stem.rpartition("-")[2]):
        return f"{path} is damaged (its sha256 does not begin with {told}): delete it"
    return ""


def fetch_backbone(net, on_progress=lambda done, total: None, timeout=10):
    """Downloads the ImageNet backbone of LPIPS-`net` into torch hub's folder and returns its path.

    on_progress(bytes done, bytes in total or 0) is called as data arrives. Unavailable when the network or the file is
    not as it should be; nothing is left behind then.
    """
    path = backbone_path(net)
    if not backbone_fault(net):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        with urllib.request.urlopen(SOURCE + path.name, timeout=timeout) as answer, open(part, "wb") as file:
            total = int(answer.headers.get("Content-Length") or 0)
            while block := answer.read(1 << 18):
                file.write(block)
                on_progress(file.tell(), total)
        if not verified.sha256(part).startswith(path.stem.rpartition("-")[2]):
            raise Unavailable(f"{SOURCE}{path.name} arrived damaged: try again.")
        part.replace(path)
    except (OSError, HTTPException) as error:
        raise Unavailable(f"{SOURCE}{path.name} could not be downloaded ({error}): connect to the network, or copy the "
                          f"file to {path.parent} from a machine that has one.") from error
    finally:
        part.unlink(missing_ok=True)
    return path


def load_judge():
    """The shipped judge, verified. Unavailable when it is missing, changed, or torchvision does not work."""
    if fault := models.torchvision_fault():
        raise Unavailable(f"{fault}.")
    from . import judge

    try:
        verified.check(judge.FOLDER)
        return judge.load(judge.FOLDER)
    except (BadModel, FileNotFoundError) as error:
        raise Unavailable(str(error)) from error


class Slices(torch.nn.Module):
    """The judge as lpips wants its backbone: pictures in, a list of feature maps out."""

    def __init__(self, judge):
        super().__init__()
        self.judge = judge

    def forward(self, pictures):
        return self.judge.features(pictures)


def imagenet_lpips(net):
    """LPIPS (Zhang et al., arXiv 1801.03924) with its learned weights on the backbone that lies on this disk."""
    import lpips

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision.models")  # lpips says pretrained=
        loss = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    saved = torch.load(backbone_path(net), map_location="cpu", weights_only=True)
    names = {name: "features." + name.partition(".")[2] for name in loss.net.state_dict()}
    loss.net.load_state_dict({name: saved[source] for name, source in names.items()})
    return loss.eval().requires_grad_(False)


def stickers_lpips():
    """The unweighted variant of section 3 of the paper, as the lpips package computes it, on the judge's features."""
    judge = load_judge()
    import lpips

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision.models")
        loss = lpips.LPIPS(net="squeeze", lpips=False, pnet_rand=True, verbose=False)
    loss.scaling_layer = torch.nn.Identity()  # the judge was trained on plain [-1, 1]
    loss.net = Slices(judge)
    return loss.eval().requires_grad_(False)


@functools.cache
def perceptual():
    """(LPIPS network, its name), chosen once per process so that two kinds never meet in one table.

    Unavailable with the reasons when no backbone can be used; that is not remembered, the next call looks again.
    """
    if fault := models.torchvision_fault():
        raise Unavailable(f"{fault}.")
    faults = {net: backbone_fault(net) for net in BACKBONES}
    for net, fault in faults.items():
        if not fault:
            return imagenet_lpips(net), f"LPIPS ({net})"
    try:
        return stickers_lpips(), STICKERS_LPIPS
    except Unavailable as error:
        raise Unavailable(f"There is no backbone for LPIPS: {', '.join(faults.values())}. Bring one with "
                          f"`python -m fastviz fetch lpips`. Nor is there the stickers' own: {error}") from error


def tensor(picture):
    """PIL RGB -> (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.asarray(picture, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1


def psnr(reference, picture):
    """Peak signal-to-noise ratio in dB over all channels; infinity for equal pictures."""
    error = np.mean((np.asarray(reference, np.float64) - np.asarray(picture, np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def ssim(reference, picture):
    """Structural similarity, at most 1, as in Wang et al. 2004: Gaussian 11 x 11 of sigma 1.5, per colour channel."""
    from skimage.metrics import structural_similarity

    return float(structural_similarity(np.asarray(reference), np.asarray(picture), channel_axis=2, data_range=255,
                                       gaussian_weights=True, sigma=1.5, use_sample_covariance=False))


def colours(values, top):
    """(H, W) values -> PIL RGB in viridis: 0 is dark, `top` and more is bright."""
    from matplotlib import colormaps

    return Image.fromarray(colormaps["viridis"](np.clip(values / top, 0, 1), bytes=True)[..., :3])


def difference_map(reference, picture):
    """Absolute difference per pixel, mean of the channels, in viridis up to DIFFERENCE_TOP."""
    difference = np.abs(np.asarray(reference, np.float32) - np.asarray(picture, np.float32)).mean(2) / 255
    return colours(difference, DIFFERENCE_TOP)


@torch.no_grad()
def lpips_score(reference, picture):
    """(LPIPS, 0 for equal pictures; its map per pixel as PIL RGB; its name). Unavailable with the reason."""
    loss, name = perceptual()
    pair = tensor(reference), tensor(picture)
    loss.spatial = False
    value = float(loss(*pair))
    loss.spatial = True
    return value, colours(loss(*pair)[0, 0].numpy(), LPIPS_TOP if loss.lpips else loss.L / 2), name


def stickers_match(picture, prompt):
    """(share of what the prompt names that the judge finds, {name: found})."""
    size = MODELS["stickers"].size  # what the judge was trained on
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    answer = load_judge().match(tensor(picture), prompt)
    if answer is None:
        raise Unavailable("The prompt names nothing that the judge knows.")
    return answer


load_clip = functools.cache(models.load_clip)


@torch.no_grad()
def clip_match(picture, prompt):
    """(cosine of CLIP's picture and prompt embeddings, at least 0, {}): Hessel et al., arXiv 2104.08718, unscaled."""
    try:
        clip, processor = load_clip()
    except BadModel as error:
        raise Unavailable(f"No CLIP score: {error}") from error
    answer = clip(**processor(text=[prompt], images=picture, return_tensors="pt", truncation=True))
    return max(0.0, float(torch.cosine_similarity(answer.image_embeds, answer.text_embeds))), {}


def score(reference, picture, prompt, model_key):
    """Everything about `picture` beside `reference`, two PIL RGB pictures of one size.

    lpips, psnr (dB), ssim, match: a float, or a str that is the reason why there is none; lpips_name: which LPIPS;
    found: {what the prompt names: whether it was found}; lpips_map, difference_map: PIL RGB or None.
    """
    if reference.size != picture.size:
        raise ValueError(f"pictures of two sizes cannot be compared: {reference.size} and {picture.size}")
    pair = reference, picture
    answer = dict(psnr=psnr(*pair), ssim=ssim(*pair), difference_map=difference_map(*pair))
    try:
        answer["lpips"], answer["lpips_map"], answer["lpips_name"] = lpips_score(*pair)
    except Unavailable as reason:
        answer.update(lpips=str(reason), lpips_map=None, lpips_name="LPIPS")
    try:
        answer["match"], answer["found"] = (stickers_match if model_key == "stickers" else clip_match)(picture, prompt)
    except Unavailable as reason:
        answer.update(match=str(reason), found={})
    return answer
