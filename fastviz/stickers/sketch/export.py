"""The network for sketches in assets/stickers/sketch: half precision, diffusers' layout, hashes, and whose it is."""

import json
import shutil

from ... import verified
from ...sketch import ABOUT, path_of
from ..loop import SHIPPED, checkpoint
from ..sdxs import chain
from . import fit, network


def trained(unet):
    """The ControlNetModel as training left it, its moving average, for the teacher's `unet`. NotYet before its stage has run."""
    if (saved := checkpoint(fit.name())) is None:
        raise chain.NotYet("There is no network for sketches of the committed teacher: run `python -m fastviz.stickers sketch` first.")
    control = network.untrained(unet)
    control.load_state_dict(saved["average"])
    return control.eval().requires_grad_(False)


def about():
    """What sketch.json tells: sha256 of the teacher's weights, steps, hours and devices, and the last report."""
    saved = checkpoint(fit.name())
    told = {"teacher": chain.digest(), "step": saved["step"], "hours": round(saved["hours"], 2),
            "device": sorted({row["device"] for row in saved["log"]})}
    return told | {name: row[name] for row in saved["log"][-1:] for name in ("with", "without")}


def export(folder=SHIPPED):
    """Writes folder/sketch and its lines of folder/hashes.json."""
    control, target = trained(chain.committed_teacher().unet).to("cpu").half(), path_of(folder / "model")
    shutil.rmtree(target, ignore_errors=True)
    control.save_pretrained(target, max_shard_size="9MB")
    (target / ABOUT).write_text(json.dumps(about(), indent=1) + "\n")
    verified.rewrite_hashes(target)
