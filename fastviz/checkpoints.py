"""The table of models: what each is, where it comes from, what it needs, and what may be asked of it."""

import functools
import json
import math
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
EVERY = ("full", "few_step", "attention_reuse", "tome", "atedm", "olss")
ONE_LAYER = ("full", "few_step", "attention_reuse", "tome", "olss")  # atedm acts between the layers of one transformer
ONE_STEP = ("full", "tome")  # one step leaves nothing to skip and nothing to reuse
FLOAT_BYTES = {"half": 2, "float32": 4}


@dataclass(frozen=True)
class Control:
    """A published network that reads sketches for one model (ControlNet): where it is fetched from, at which commit, and what
    its residuals are multiplied with."""
    hub: str
    revision: str
    scale: float


@dataclass(frozen=True)
class Model:
    """One model that a request may name.

    source: its folder, from the project's root or absolute; None for what is fetched; own: that is a folder of the
    operator's, which we did not make; size, sizes: px; one_size: it was trained at `size` alone, the others are for timing; steps,
    guidance: its defaults; closed: its language has only the words of its vocabulary, and others are named to the user; hub,
    revision: where it is fetched from, a commit; variant: of its files, "" for the plain ones; dtype: "half" on a GPU or "float32" everywhere; parameters: in millions, of all that is loaded;
    working: GiB beside the weights, for Python, torch and the activations of one guided picture at its own size;
    scheduler: "ddim", or "own" for what lies in the folder; most_steps, most_guidance: upper bounds; methods: keys that do
    something here; rows: what is asked for when nobody says; begins: settings, as one stack, that the page begins with where those of
    the methods are not for this model; reference: the full model that a distilled one stands for; student: the key of a published
    one that draws what this one draws, in one step;
    control: the network that reads sketches and is fetched with the model.
    """
    key: str
    title: str
    source: str | None
    size: int
    sizes: tuple
    steps: int
    guidance: float
    licence: str
    closed: bool = False
    one_size: bool = False
    hub: str = ""
    revision: str = ""
    variant: str = ""
    dtype: str = "half"
    parameters: float = 0.0
    working: float = 2.0
    scheduler: str = "own"
    most_steps: int = 100
    most_guidance: float = 20.0
    methods: tuple = EVERY
    rows: str = "full,few_step,attention_reuse,few_step(match=attention_reuse),tome"
    begins: str = ""
    reference: str = ""
    student: str = ""
    control: Control | None = None
    own: bool = False

    @property
    def folder(self):
        return store() / self.key / "model" if self.source is None else ROOT / self.source

    @property
    def missing(self):
        """"" when its folder is there, else what to do."""
        if self.folder.is_dir():
            return ""
        if self.source is None:
            return f"{self.title} was not fetched yet: `python -m fastviz fetch {self.key}`."
        what = "bring it here again, or start without it" if self.own else "get the complete project again"
        return f"There is no folder {self.folder}: {what}."

    @property
    def note(self):
        """What must stand beside the pictures of a distilled model, or ""."""
        if not self.reference:
            return ""
        whole = next((model.title for model in MODELS.values() if model.student == self.key), "")
        beside = f" To set it beside {whole}, choose that model and its row of the one-step student." if whole else ""
        return (f"{self.title} is a distilled model. Its full model is {self.reference}; the rows here are measured against "
                f"{self.title} as it is.{beside}")

    def memory(self, device):
        """Bytes that it takes on a device of that type, about: weights and what a run needs beside them."""
        width = FLOAT_BYTES[self.dtype] if device == "cuda" else FLOAT_BYTES["float32"]
        return round(self.parameters * 1e6) * width + round(self.working * 2**30)


def store():
    """Where fetched models lie: FASTVIZ_MODELS, or fastviz/models in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FASTVIZ_MODELS") or Path(cache, "fastviz", "models"))


# Revisions are commits that public projects name for these repositories; sizes in parameters are those of the published
# configurations, counted by the tests.
diffusion = functools.partial(Model, source=None, size=512, sizes=(256, 384, 512, 640, 768), steps=50, guidance=7.5,
                              variant="fp16", scheduler="ddim", methods=ONE_LAYER, parameters=1066.2)
distilled = functools.partial(Model, source=None, size=512, sizes=(256, 384, 512), steps=1, guidance=1.0, most_guidance=1.0,
                              most_steps=1, dtype="float32", methods=ONE_STEP, rows="full,tome")

MODELS = {model.key: model for model in (
    Model("stickers", "Stickers (embedded)", "assets/stickers/model", 256, (128, 256, 384, 512), 50, 3.0, "Apache-2.0",
          closed=True, one_size=True, parameters=13.0, methods=(*EVERY, "sdxs"),
          begins="atedm(ratio=0.3,recover=update,finest=false)"),  # so small a network has few tokens to spare
    diffusion("sd15", "Stable Diffusion 1.5", licence="CreativeML OpenRAIL-M",
              hub="stable-diffusion-v1-5/stable-diffusion-v1-5", revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14"),
    diffusion("dreamshaper8", "DreamShaper 8", licence="CreativeML OpenRAIL-M", methods=(*ONE_LAYER, "sdxs"), student="sdxs-dreamshaper",
              hub="Lykon/dreamshaper-8", revision="a7e52b98680b1ba8ff7bce97c7f9f2e2e5337917"),
    diffusion("sdxl", "Stable Diffusion XL", licence="CreativeML Open RAIL++-M", size=1024, sizes=(512, 768, 1024),
              guidance=5.0, parameters=3468.8, methods=EVERY, rows="full,few_step,tome,atedm",
              working=6.0,  # its decoder, in single precision, makes tensors of 1 GiB each
              hub="stabilityai/stable-diffusion-xl-base-1.0", revision="462165984030d82259a11f4367a4eed129e94a7b"),
    distilled("sdxs-dreamshaper", "SDXS-512 DreamShaper", licence="CreativeML Open RAIL++-M", parameters=441.3,
              reference="DreamShaper 8",
              hub="IDKiro/sdxs-512-dreamshaper", revision="76f720262bb051da75666b22c902a78c8e16c763",
              control=Control("IDKiro/sdxs-512-dreamshaper-sketch", "cd341678087336ed72c05660ac84d765896b48e7", 0.8)),
    distilled("sdxs", "SDXS-512 0.9", licence="CreativeML Open RAIL++-M", parameters=671.0,
              reference="Stable Diffusion 2.1 base",
              hub="IDKiro/sdxs-512-0.9", revision="c332f05f60eb4b453de513be52c2a18c48d8cfe6"),
    distilled("sd-turbo", "SD-Turbo", licence="Stability AI Community License", parameters=1290.0, variant="fp16",
              dtype="half", most_steps=4, methods=("full", "few_step", "attention_reuse", "tome"),
              reference="Stable Diffusion 2.1", hub="stabilityai/sd-turbo",
              revision="b261bac6fd2cf515557d5d0707481eafa0485ec2"),
)}


# Folders of the operator's own

class BadFolder(ValueError):
    """A folder that is none of a pipeline, or none that runs here. The text tells what to do."""


def folder_option(parser):
    parser.add_argument("--model-folder", metavar="PATH", help="a diffusers folder of your own, as one more model")


def model_options(parser):
    """What a command is told of its one model, for `take_folder` to settle."""
    parser.add_argument("--model", choices=MODELS, help="a key of the table of models (default stickers)")
    folder_option(parser)


def take_folder(args, default=None):
    """Enters --model-folder into the table; the command is for it unless --model names another. BadFolder as of `add_folder`."""
    own = add_folder(args.model_folder) if args.model_folder else None
    args.model = getattr(args, "model", None) or own or default
    return args


def published(folder):
    """The published one-step student, of the table, of the model in `folder`, or None."""
    key = next((model.student for model in MODELS.values() if model.folder == folder), "")
    return MODELS.get(key)


def model_argument(folder):
    """How a command is told of the model in `folder`. One that is in no table is called as fetched ones are."""
    model = next((model for model in MODELS.values() if model.folder == folder), None)
    return f"--model-folder {shlex.quote(str(folder))}" if model and model.own else f"--model {model.key if model else folder.parent.name}"


def add_folder(path):
    """Enters a diffusers folder on this disk into the table, for this process, and returns its key. For operators: what a
    visitor sends never comes here. BadFolder with a sentence when it is no such folder, or its weights cannot be loaded."""
    folder = Path(path).expanduser().resolve()
    try:
        index, unet, vae = (json.loads((folder / name).read_text())
                            for name in ("model_index.json", "unet/config.json", "vae/config.json"))
        size = unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
        layers = unet.get("transformer_layers_per_block") or 1
        scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
        named = index["_class_name"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadFolder(f"{folder} is no folder of a diffusers pipeline ({error}): give the one that holds model_index.json."
                        ) from error
    key = re.sub(r"[^a-z0-9.-]+", "-", folder.name.lower() if folder.name != "model" else folder.parent.name.lower()).strip("-.")
    known = [key, f"folder-{key}", *(f"folder-{key}-{i}" for i in range(2, 1000))]
    key = next(each for each in known if each and each not in MODELS)
    parts = [path for path in (folder / part for part in ("unet", "vae", "text_encoder", "text_encoder_2")) if path.is_dir()]
    kinds = {part: {variant_of(path) for path in part.glob("*.safetensors")} for part in parts}
    if bare := next((part for part, found in kinds.items() if not found & {"", "fp16"}), None):
        raise BadFolder(f"{bare} holds no safetensors, and nothing else is loaded here: get the model as safetensors, or save it anew "
                        "with diffusers' save_pretrained.")
    variant = "" if all("" in found for found in kinds.values()) else "fp16"
    deep = layers != 1 if isinstance(layers, int) else any(each != 1 for each in layers)
    MODELS[key] = Model(
        key, f"{folder.name} (folder, {named.removesuffix('Pipeline')})", str(folder), size, tuple(sorted({
            side for side in (size // 2, size * 3 // 4, size) if side % 64 == 0} | {size})), 50, 7.5,
        "as told by whoever made it", own=True, variant=variant, parameters=millions(parts, variant),
        scheduler="ddim" if scheduler.get("_class_name") in SEVERAL_CALLS else "own", methods=EVERY if deep else ONE_LAYER,
        rows="full,few_step,attention_reuse,few_step(match=attention_reuse),tome")
    return key


SEVERAL_CALLS = ("PNDMScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")  # call the network more often than asked


def variant_of(path):
    """Which of several sets of weights a file belongs to: "", "fp16" or "non_ema", such as vae/model.fp16-00001-of-00002.safetensors."""
    return re.sub(r"-\d+-of-\d+", "", path.name).removesuffix(".safetensors").partition(".")[2]


def millions(parts, variant):
    """Parameters, in millions, in those safetensors of these folders that are loaded; only headers are read. BadFolder where one
    cannot be read."""
    from safetensors import SafetensorError, safe_open

    total = 0
    for path in (path for part in parts for path in part.glob("*.safetensors") if variant_of(path) == variant):
        try:
            with safe_open(path, "np") as file:
                total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
        except (OSError, SafetensorError) as error:
            raise BadFolder(f"{path} holds no weights ({error}): bring the whole file; after `git clone`, `git lfs pull` does it.") from error
    return total / 1e6
