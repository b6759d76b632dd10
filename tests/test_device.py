"""A model of the table as the app runs it on this machine's device: on a GPU at its real size in half precision, elsewhere at
tiny width. Weights are random, so that pictures show nothing; times, memory, records and every method's code are real."""

import dataclasses
import io

import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from folders import BETAS, loud, make
from PIL import Image
from test_checkpoints import WHOLE

from fastviz import compare, fitted, models, sketch, verified
from fastviz.methods import METHODS
from fastviz.models import MODELS
from fastviz.request import Request
from fastviz.stickers import parts

GPU = torch.cuda.is_available()


def whole(key):
    """The pipeline with the published configuration, random weights in half precision, in the GPU's memory."""
    with torch.device("cuda"):
        unet, text, *more, vae = (part.half() for part in WHOLE[key]())
    words, scheduler = parts.tokenizer(), DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **BETAS)
    if more:
        return StableDiffusionXLPipeline(vae=vae, text_encoder=text, text_encoder_2=more[0], tokenizer=words, tokenizer_2=words, unet=unet,
                                         scheduler=scheduler, add_watermarker=False)
    return StableDiffusionPipeline(vae=vae, text_encoder=text, tokenizer=words, unet=unet, scheduler=scheduler, safety_checker=None,
                                   feature_extractor=None, image_encoder=None, requires_safety_checker=False)


@pytest.fixture(params=["sd15", "sdxl"])
def key(request, tmp_path, monkeypatch):
    """A key of the table whose folder was made here, a network for sketches in it."""
    monkeypatch.setenv("FASTVIZ_MODELS", str(tmp_path))
    monkeypatch.setattr(models, "_loaded", {})
    monkeypatch.setattr(models, "_beside", {})
    name = request.param
    if not GPU:
        monkeypatch.setitem(MODELS, name, dataclasses.replace(MODELS[name], size=128, sizes=(128,), parameters=0.1))
    pipe = whole(name) if GPU else make(name)
    pipe.save_pretrained(tmp_path / name / "model", variant=MODELS[name].variant or None)
    if name == "sd15":
        folder = sketch.path_of(MODELS[name].folder)
        loud(ControlNetModel.from_unet(pipe.unet)).save_pretrained(folder)
        (folder / sketch.ABOUT).write_text(f'{{"teacher": "{fitted.weights(MODELS[name].folder)}", "scale": 1.0}}')
    verified.write_hashes(tmp_path / name)
    return name


def picture(size):
    file = io.BytesIO()
    Image.radial_gradient("L").resize((size, size)).save(file, "PNG")
    return file.getvalue()


def test_every_method_runs_and_is_recorded_on_this_device(key):
    model = MODELS[key]
    able = [method.KEY for method in METHODS if method.KEY in model.methods and method.KEY != "olss"]
    rows = ",".join({"few_step": "few_step(steps=2)"}.get(name, name) for name in able)
    request = Request("a cat on the beach", model=key, steps=4, repeats=1, methods=f"{rows},tome(share=true)+attention_reuse")
    found = compare.final(compare(request))
    assert models.load(key).device.type == models.device().type
    assert models.load(key).unet.dtype == models.precision(models.device())
    for row in found:
        assert row.error is None and row.applied and row.seconds > 0 and row.image.size == (model.size,) * 2, row.title
        assert not GPU or row.peak_bytes > 0
        assert compare.traced(request, row).channels
    full, *fast = found
    assert all(row.flops < full.flops for row in fast)


def test_pictures_that_are_given_run_on_this_device(key):
    pictures = {"start": picture(MODELS[key].size)} | ({"sketch": picture(256)} if key == "sd15" else {})
    for name, data in pictures.items():
        request = Request("a cat", model=key, steps=4, repeats=1, methods="full,tome", **{name: data})
        assert [row.error for row in compare.final(compare(request))] == [None, None], name
