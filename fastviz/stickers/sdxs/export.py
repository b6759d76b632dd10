"""The student as a diffusers pipeline in assets/stickers/sdxs, or kept for more training: half precision, hashes, and whose it is."""

import json
import shutil

from diffusers import StableDiffusionPipeline

from ... import verified
from ...methods.sdxs import ABOUT, path_of
from ..export import save
from ..loop import SHIPPED
from ..parts import scheduler
from . import UNETS, chain, decoder, network, pairs


def pipeline(guide, unet, vae, stage=None):
    """The student's pipeline: one step, no guidance. guide: the teacher, whose text encoder it shares; stage: the one that trained
    `unet`, which after distillation answers as the teacher does, with the noise."""
    answer = "epsilon" if stage == UNETS[0] else "v_prediction"
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=guide.text, tokenizer=guide.tokenizer, unet=unet, scheduler=network.scheduler(scheduler().config, answer),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def about(stage):
    """What student.json tells: sha256 of the teacher's weights, the stage, and of it and all before it steps, hours, devices and the
    recipe of each sitting (minutes, steps, batch, learning rate, ...). What has not run on this machine stays as it was told before."""
    order = "decoder", *UNETS[:UNETS.index(stage) + 1]
    (_, before), trained = chain.committed(), {each: chain.checkpoint(each) for each in order}
    stages = {each: row for each, row in before.get("stages", {}).items() if each in order} | {each: {"step": saved["step"], "hours": round(saved["hours"], 2), "device": sorted({row["device"] for row in saved["log"]}),
                     "sittings": saved.get("sittings", [])}
              for each, saved in trained.items() if saved}
    drawn = pairs.saved()
    told = {"count": len(drawn["latents"]), "steps": drawn["steps"], "guidance": drawn["guidance"]} if drawn else before.get("pairs")
    return {"teacher": chain.digest(), "stage": stage, "stages": {each: stages[each] for each in order if each in stages}, "pairs": told}


def export(folder=SHIPPED, stage=None):
    """Writes folder/sdxs from a stage of UNETS, by default the last one after distil that has run, and its lines of
    folder/hashes.json. Returns that stage. NotYet when it has not run."""
    stage = stage or next((each for each in reversed(UNETS[1:]) if chain.checkpoint(each)), UNETS[1])
    guide, target = chain.committed_teacher(), path_of(folder / "model")
    pipe, told = pipeline(guide, chain.student(guide, stage), decoder.trained(), stage).to("cpu"), about(stage)
    for each in (target, folder / chain.KEPT):
        shutil.rmtree(each, ignore_errors=True)
        verified.rewrite_hashes(each)
    save(pipe, target)
    tell(target, told)
    return stage


def keep(folder=SHIPPED):
    """Writes folder/onward-sdxs, where any machine goes on from: U-Net and decoder after the last stage that has run. What the app
    draws with stays as it is. Returns that stage. NotYet before distillation and the small decoder."""
    stage, target = next((each for each in reversed(UNETS) if chain.checkpoint(each)), UNETS[0]), folder / chain.KEPT
    parts, told = {"unet": chain.student(chain.committed_teacher(), stage), "vae": decoder.trained()}, about(stage)
    shutil.rmtree(target, ignore_errors=True)
    for name, part in parts.items():
        part.half().save_pretrained(target / name, max_shard_size="9MB")
    tell(target, told)
    return stage


def tell(target, told):
    (target / ABOUT).write_text(json.dumps(told, indent=1) + "\n")
    verified.rewrite_hashes(target)
