"""The only code that loads pipelines: what lies on this disk, verified."""

import contextlib
import functools
import gc
import json
import logging
import math
import sys
import threading
from pathlib import Path

from .checkpoints import MODELS, ROOT, Model, model_argument, model_options, published, store, take_folder  # noqa: F401  others know them by this module
from .verified import BadModel, again, check, contents, sha256

PIPELINES, LIBRARIES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline"), {"diffusers", "transformers", "stable_diffusion"}
LEFT_OUT = {"safety_checker": None, "feature_extractor": None, "image_encoder": None, "requires_safety_checker": False,
            "add_watermarker": False}  # what does not take part in making a picture
OPTIONS = {"StableDiffusionPipeline": {"requires_safety_checker"}, "StableDiffusionXLPipeline": {"add_watermarker"}}
log = logging.getLogger(__name__)


CLIP = ("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41",
        "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb")  # name, revision, sha256 of the weights


def verify(model, part=""):
    """`check` of a model's folder; one that is not there is told with what to do."""
    if model.missing:
        raise BadModel(model.missing)
    return check(model.folder, recorded=model.source is None, part=part, own=model.own)


def device():
    """Where models run: the first of CUDA, XPU and MPS that works here, else the CPU."""
    import torch

    kinds = {"cuda": torch.cuda, "xpu": torch.xpu, "mps": torch.backends.mps}
    return torch.device(next((kind for kind, backend in kinds.items() if backend.is_available()), "cpu"))


def knows_bfloat16():
    """Whether this processor has instructions for bfloat16."""
    import torch

    known = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch that this runs with
    return any(present for name, present in known.items() if "bf16" in name)


def precision(where):
    """The dtype that models compute in on a device: half precision on CUDA, where it is twice as fast, else float32, also
    on a processor that knows bfloat16: what it saves there is little beside what it changes (`bench local` shows both)."""
    import torch

    return torch.float16 if where.type == "cuda" else torch.float32


def torchvision_fault():
    """"" when torchvision works. Else why not; it is then hidden, because a broken one takes diffusers down with it.
    Whatever imports diffusers or transformers asks before: they look once which packages there are."""
    with _looking:  # of two threads that fail in the same import, one would uncover what the other has hidden
        return look_at_torchvision()


@functools.cache
def look_at_torchvision():
    try:
        import torchvision  # noqa: F401
    except Exception as error:  # a build for another torch raises RuntimeError or OSError, whatever it meets first
        sys.modules["torchvision"] = None
        return f"torchvision does not work here ({error}): install torch and torchvision from the same index"
    return ""


_looking = threading.Lock()


@contextlib.contextmanager
def quiet():
    """Loading without progress bars and without two warnings about AutoencoderTiny that diffusers gives every time."""
    import diffusers.utils.logging as ours
    import transformers.utils.logging as theirs

    known = {"diffusers.pipelines.pipeline_utils": "Expected types for vae",
             "diffusers.configuration_utils": "The config attributes {'block_out_channels'"}
    bars = [library for library in (ours, theirs) if library.is_progress_bar_enabled()]
    with contextlib.ExitStack() as after:
        for name, beginning in known.items():
            logger = logging.getLogger(name)
            other = functools.partial(lambda start, record: not record.getMessage().startswith(start), beginning)
            logger.addFilter(other)
            after.callback(logger.removeFilter, other)
        for library in bars:
            library.disable_progress_bar()
            after.callback(library.enable_progress_bar)
        yield


def index(folder):
    """What model_index.json says of a pipeline. BadModel unless it is one that runs here, made of diffusers' and
    transformers' own classes."""
    try:
        told = json.loads(Path(folder, "model_index.json").read_text())
        kind = told["_class_name"]
        libraries = {part[0] for part in told.values() if isinstance(part, list)} - {None}
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise BadModel(f"{folder} is no folder of a diffusers pipeline ({error}): choose one with a model_index.json.") from error
    if kind not in PIPELINES:
        raise BadModel(f"{folder} holds a {kind}, and only {' and '.join(PIPELINES)} run here.")
    if strange := libraries - LIBRARIES:
        raise BadModel(f"{folder} asks for code of {', '.join(map(str, strange))}: only diffusers and transformers are run.")
    return told


def free_memory(where):
    """Bytes that may still be allocated on a device; within a container, on a CPU, up to the container's limit."""
    if where.type == "meta":
        return math.inf
    import psutil
    import torch

    backend = getattr(torch, where.type)
    if hasattr(backend, "mem_get_info"):  # CUDA, XPU: what torch keeps for its next allocation is free, too
        return backend.mem_get_info(where)[0] + backend.memory_reserved(where) - backend.memory_allocated(where)
    limit = Path("/sys/fs/cgroup/memory.max")
    told = limit.read_text().strip() if limit.exists() else "max"
    room = math.inf if told == "max" else int(told) - psutil.Process().memory_info().rss
    return max(0, min(psutil.virtual_memory().available, room))


def make_room(model, where):
    """Lets other models go when `model` would not fit beside them. BadModel when it does not fit at all."""
    if model.memory(where.type) > free_memory(where):
        _loaded.clear()
        _beside.clear()
        gc.collect()
    need, free = model.memory(where.type), free_memory(where)
    if need > free:
        raise BadModel(f"{model.title} takes about {need / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free: close "
                       "other programs, or choose a smaller model.")


def dtypes(model, kind, where):
    """What from_pretrained makes of the weights. SDXL's decoder overflows in half precision and stays in single."""
    import torch

    one = precision(where) if model.dtype == "half" else torch.float32
    return {"default": one, "vae": torch.float32} if kind == PIPELINES[1] else one


def read(model):
    """Loads `model` from its folder: verified, safetensors only, no network, no code but diffusers' own."""
    for fault in filter(None, (verify(model), torchvision_fault())):
        log.warning("%s", fault)
    from diffusers import DiffusionPipeline

    told, where = index(model.folder), device()
    left_out = {name: value for name, value in LEFT_OUT.items() if name in told or name in OPTIONS[told["_class_name"]]}
    make_room(model, where)
    try:
        with quiet():
            pipe = DiffusionPipeline.from_pretrained(
                model.folder, dtype=dtypes(model, told["_class_name"], where), local_files_only=True, use_safetensors=True,
                variant=model.variant or None, **left_out)
    except Exception as error:
        raise BadModel(f"{model.folder} could not be read ({error}): {again(model.folder, model.source is None, model.own)}.") from error
    return ready(pipe, model, where)


def ready(pipe, model, where):
    """The pipeline as it runs here: on its device, frozen, with the scheduler that the table names."""
    import torch
    from diffusers import DDIMScheduler

    pipe.to(where)
    pipe.set_progress_bar_config(disable=True)
    for part in (part for part in pipe.components.values() if isinstance(part, torch.nn.Module)):
        part.eval().requires_grad_(False)
    if where.type == "cpu":  # U-Net 3 %, decoder 20 % faster than contiguous (AVX2, one thread), and as repeatable
        for part in (pipe.unet, pipe.vae):
            part.to(memory_format=torch.channels_last)
    if model.scheduler == "ddim":
        known = {"clip_sample": False, "set_alpha_to_one": False} | dict(pipe.scheduler.config)
        pipe.scheduler = DDIMScheduler.from_config(known)
    return pipe


_loaded, _beside, _lock = {}, {}, threading.Lock()


def load(key):
    """The pipeline of MODELS[key], on `device()`, loaded once. BadModel when it is missing or changed."""
    with _lock:
        if key not in _loaded:
            _loaded[key] = read(MODELS[key])
        return _loaded[key]


def is_loaded(key, pipe):
    """Whether `pipe` is what `load(key)` gave."""
    return pipe is not None and _loaded.get(key) is pipe


def load_beside(folder):
    """The pipeline in `folder`, which belongs to a model and is none of its own, read again when its files were exchanged.
    BadModel when it is missing or changed."""
    return fresh_beside(folder, lambda folder: read(Model(folder.name, folder.name, str(folder), 0, (), 1, 1.0, "")))


def fresh_beside(folder, read, part=""):
    """What `read` made of a part of a folder, as long as its files stay the same."""
    stamp = tuple((name, Path(folder, name).stat().st_mtime_ns) for name in contents(folder))
    with _lock:
        if _beside.get((folder, part), (None,))[0] != stamp:
            _beside[folder, part] = stamp, read(folder)
        return _beside[folder, part][1]


def load_control(folder, dtype=None):
    """The ControlNetModel in `folder`, which belongs to a model and is none of its own, read again when its files were
    exchanged. dtype: of its model's U-Net, by default what models compute in here. BadModel when it is missing or changed."""
    return fresh_beside(folder, functools.partial(read_network, kind="ControlNetModel", dtype=dtype, recorded=folder.is_relative_to(store())))


def load_tiny(folder, dtype, part=""):
    """The AutoencoderTiny in `folder`, for the latents of the model beside it. BadModel when it is missing, changed or not told of
    in the hashes.json beside it: nothing else says that it belongs there. part: of a student in `folder`, which says whose it is."""
    return fresh_beside(folder, functools.partial(read_network, kind="AutoencoderTiny", dtype=dtype, recorded=not part, part=part), part)


def read_network(folder, kind, dtype, recorded, part=""):
    """One network in a folder. kind: its class in diffusers; dtype, recorded, part: see `load_control` and `verified.check`."""
    check(folder, recorded=recorded, part=part)
    torchvision_fault()
    import diffusers
    import torch

    where = device()
    try:
        with quiet():
            network = getattr(diffusers, kind).from_pretrained(folder / part, local_files_only=True, use_safetensors=True,
                                                               dtype=dtype or precision(where))
    except Exception as error:
        raise BadModel(f"{folder} could not be read ({error}): {again(folder, folder.is_relative_to(store()))}.") from error
    network.to(where).eval().requires_grad_(False)
    return network.to(memory_format=torch.channels_last) if where.type == "cpu" else network


def load_clip():
    """The CLIP model and processor of the CLIP score, on the CPU, when its verified weights lie in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    name, revision, told = CLIP
    path = try_to_load_from_cache(name, "model.safetensors", revision=revision)
    if not isinstance(path, str):
        raise BadModel(f"{name} is not on this disk: bring it with `hf download {name} --revision {revision}`.")
    if sha256(path) != told:
        raise BadModel(f"{path} was changed or damaged: delete it and download it again.")
    torchvision_fault()
    from transformers import CLIPModel, CLIPProcessor

    folder = Path(path).parent
    model = CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    return model.eval().requires_grad_(False), CLIPProcessor.from_pretrained(folder, local_files_only=True)


@functools.cache
def tokenizer(folder):
    """The tokenizer of a model's folder: a copy of our own, because the pipeline's is written to while it runs."""
    check(folder, part="tokenizer/", own=any(model.own for model in MODELS.values() if model.folder == folder))
    torchvision_fault()
    with _lock:  # transformers cannot be imported by two threads at once
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
