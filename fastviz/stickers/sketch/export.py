"""The networks for sketches in assets/stickers/sketch and, the student's own, in sdxs-sketch: half precision, diffusers' layout,
hashes, and whose they are."""

import json
import shutil

from ... import fitted, verified
from ...methods import sdxs
from ...sketch import ABOUT, path_of, students_path
from ..loop import SHIPPED, checkpoint
from ..sdxs import chain
from . import fit, network, student


def trained(unet, name):
    """The ControlNetModel as training left it under `name`, its moving average, for a `unet`. NotYet before its stage has run."""
    if (saved := checkpoint(name)) is None:
        raise chain.NotYet("There is no network for sketches of the committed teacher: run `python -m fastviz.stickers sketch` first.")
    control = network.untrained(unet)
    control.load_state_dict(saved["average"])
    return control.eval().requires_grad_(False)


def about(saved, whose):
    """What sketch.json tells of a checkpoint: sha256 of the weights that it was trained for, steps, hours and devices, and the last
    report."""
    told = {"teacher": whose, "step": saved["step"], "hours": round(saved["hours"], 2), "device": sorted({row["device"] for row in saved["log"]})}
    return told | {key: row[key] for row in saved["log"][-1:] for key in ("with", "without", "agreement", "gap", "objects") if key in row}


def export(folder=SHIPPED):
    """Writes folder/sketch and, where it was trained for the committed student, folder/sdxs-sketch, and their lines of
    folder/hashes.json. NotYet where neither was trained."""
    guide, small = chain.committed_teacher(), not sdxs.missing(chain.MODEL.folder) and checkpoint(student.name())
    if checkpoint(fit.name()) or not small:
        write(trained(guide.unet, fit.name()), path_of(folder / "model"), about(checkpoint(fit.name()), chain.digest()))
    if small:
        control = trained(student.committed(guide), student.name())
        write(control, students_path(folder / "model"), about(small, fitted.weights(student.home())))


def write(control, target, told):
    shutil.rmtree(target, ignore_errors=True)
    control.to("cpu").half().save_pretrained(target, max_shard_size="9MB")
    (target / ABOUT).write_text(json.dumps(told, indent=1) + "\n")
    verified.rewrite_hashes(target)
