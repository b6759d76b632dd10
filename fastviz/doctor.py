"""What runs here: device, kernels, versions, models and backbones on this disk, and what to do about the rest."""

import os
import platform
import warnings
from importlib.metadata import PackageNotFoundError, version

import torch
from packaging.version import Version
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from . import metrics, models, verified
from .compare import device_name

FLOORS = {  # package -> (lowest version, why not below)
    "torch": ("2.10", "CVE-2025-32434, CVE-2026-24747"),
    "diffusers": ("0.42.1", "GHSA-4prv-5hj7-c2xr"),
    "gradio": ("6.20", "CVE-2026-59806"),
    "torchvision": ("0.25", "made for torch 2.10"),
    "transformers": ("5.0", "what the models are saved with"),
    "lpips": ("0.1.4", "version 0.1 of its weights"),
}
ABSENT = "not on this disk"
KERNELS = {"math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION,
           "memory-efficient": SDPBackend.EFFICIENT_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}


def runs(kernel, where):
    """Whether scaled dot-product attention runs with only this kernel allowed: tried, not asked."""
    x = torch.zeros(1, 2, 64, 32, device=where, dtype=models.precision(where))
    try:
        with warnings.catch_warnings(), sdpa_kernel(kernel):
            warnings.simplefilter("ignore")  # torch explains at length why a kernel does not run
            scaled_dot_product_attention(x, x, x)
    except RuntimeError:
        return False
    return True


def versions():
    """{package: (version found or None, floor, whether it is high enough)}."""
    found = {}
    for name, (floor, _) in FLOORS.items():
        try:
            here = version(name)
        except PackageNotFoundError:
            here = None
        found[name] = (here, floor, here is not None and Version(here) >= Version(floor))
    return found


def state(folder):
    """"verified", or the sentence that says what is wrong with a folder of weights."""
    try:
        return verified.check(folder) or "verified"
    except verified.BadModel as error:
        return str(error)


def model_state(model):
    """The same for a model of the table; one that can be fetched and was not says how, and what it takes."""
    if model.source is None and model.missing:
        need = model.memory(models.device().type) / 2**30
        return f"{ABSENT}: `python -m fastviz fetch {model.key}` brings it ({model.licence}; runs in about {need:.0f} GiB of memory)"
    try:
        return models.verify(model) or "verified"
    except verified.BadModel as error:
        return str(error)


def judge_state():
    """The same for the judge, which needs torchvision."""
    if fault := models.torchvision_fault():
        return f"{fault}."
    from . import judge

    return state(judge.FOLDER)


def advice(told):
    """Sentences on what to do, most important first; [] when nothing is missing."""
    torn = [sentence for sentence in (*told["models"].values(), told["judge"]) if sentence != "verified" and not sentence.startswith(ABSENT)]
    old = [f"Install {name} {floor} or later ({FLOORS[name][1]}): {f'{here} is too old' if here else 'it is missing'}."
           for name, (here, floor, good) in told["versions"].items() if not good]
    if "ready" not in told["backbones"].values():
        old.append("There is no ImageNet backbone for LPIPS: `python -m fastviz fetch lpips` brings one (233 MB).")
    return torn + old


def report():
    """A dict of plain values: device, dtype, kernels {name: runs}, threads, cores, python, versions {package: (found,
    floor, good)}, models {key: state}, judge (state), backbones {net: "ready" or fault}, lpips (the name of the one in
    use, or the reason why there is none), advice (sentences)."""
    where = models.device()
    told = dict(
        device=where.type, device_name=device_name(where), dtype=str(models.precision(where)).removeprefix("torch."),
        kernels={name: runs(kernel, where) for name, kernel in KERNELS.items()},
        threads=torch.get_num_threads(), cores=os.cpu_count(), python=platform.python_version(), versions=versions(),
        models={key: model_state(model) for key, model in models.MODELS.items()}, judge=judge_state(),
        backbones={net: metrics.backbone_fault(net) or "ready" for net in metrics.BACKBONES},
    )
    try:
        told["lpips"] = metrics.perceptual()[1]
    except metrics.Unavailable as reason:
        told["lpips"] = str(reason)
    return {**told, "advice": advice(told)}


def text(told):
    """The report for people: aligned lines, then what to do."""
    lines = [("device", f"{told['device']}: {told['device_name']}, {told['dtype']}"),
             ("threads", f"{told['threads']} of {told['cores']} cores"),
             ("attention", ", ".join(name for name, good in told["kernels"].items() if good)),
             ("python", told["python"])]
    lines += [(name, f"{here or 'missing'}{'' if good else f' (needs {floor})'}")
              for name, (here, floor, good) in told["versions"].items()]
    lines += [(f"model {key}", found) for key, found in told["models"].items()]
    lines += [("judge", told["judge"]), ("LPIPS", told["lpips"])]
    lines += [(f"LPIPS {net}", found) for net, found in told["backbones"].items()]
    width = max(len(name) for name, _ in lines)
    todo = [f"- {sentence}" for sentence in told["advice"]] or ["Nothing is missing."]
    return "\n".join([*(f"{name:<{width}}  {found}" for name, found in lines), "", *todo])
