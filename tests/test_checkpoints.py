"""Public checkpoints: folders of the real layout at tiny width are loaded as the table says, and run."""

import dataclasses
import io
import json
import math
import re
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, StableDiffusionControlNetPipeline, UNet2DConditionModel
from folders import BETAS, MADE, loud, make, sdxs_control, sides
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from fastviz import __main__ as command, checkpoints, compare, cost, fitted, models, reading, sketch, verified
from fastviz.bench.networks import SDXS_512
from fastviz.methods import METHODS, full, sdxs
from fastviz.models import MODELS
from fastviz.verified import BadModel
from fastviz.request import BadRequest, Request
from fastviz.run import encoded, generate, network_inputs, noise


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The folder of fetched models, with all of them in it, recorded."""
    place = tmp_path_factory.mktemp("models")
    for key in MADE:
        make(key).save_pretrained(place / key / "model", variant=MODELS[key].variant or None)
        verified.write_hashes(place / key)
    return place


@pytest.fixture(autouse=True)
def table(places, monkeypatch):
    """The table with sizes that tiny networks draw in no time."""
    monkeypatch.setenv("FASTVIZ_MODELS", str(places))
    monkeypatch.setattr(models, "_loaded", {})
    for key in MADE:
        small = dict(size=128, sizes=(128, 192), parameters=0.1)
        monkeypatch.setitem(MODELS, key, dataclasses.replace(MODELS[key], **small))


def asked(key, **more):
    return Request("a cat on the beach", seed=5, model=key, repeats=1, **more)


@pytest.mark.parametrize("key", MADE)
def test_a_checkpoint_gives_what_its_own_pipeline_gives(key):
    """Latents and picture, bit for bit, with the scheduler that the table names; sizes are what was asked for."""
    pipe, request = models.load(key), asked(key, steps=min(4, MODELS[key].most_steps), size=192)
    run = generate(pipe, request, (full.Knobs(),), request.steps)
    plain = pipe(request.prompt, height=192, width=192, num_inference_steps=request.steps, guidance_scale=request.guidance,
                 latents=noise(pipe, request))
    assert run.latents.shape == (1, 4, 24, 24) and run.image.size == (192, 192)
    assert run.image.tobytes() == plain.images[0].tobytes()
    assert len(run.steps) == request.steps


def test_the_published_student_is_a_row_of_the_model_that_it_stands_for():
    """With its own text encoder; and without its network, or its decoder."""
    found = compare.final(compare(asked("dreamshaper8", steps=2, methods="full,sdxs,sdxs(decoder=false),sdxs(unet=false)")))
    alone = compare.final(compare(asked("sdxs-dreamshaper", methods="full")))[0]
    whole, student, network, decoder = found
    assert [row.error for row in found] == [None] * 4 and [row.steps for row in found] == [2, 1, 1, 2]
    assert student.image.tobytes() == alone.image.tobytes() != whole.image.tobytes()
    assert torch.equal(network.run.latents, student.run.latents) and torch.equal(decoder.run.latents, whole.run.latents)
    assert len({row.image.tobytes() for row in found}) == 4
    tiny = sdxs.previewing(models.load("dreamshaper8")).vae
    assert torch.equal(tiny.decoder.layers[0].weight, models.load("sdxs-dreamshaper").vae.decoder.layers[0].weight)


def test_a_published_student_that_was_not_fetched_says_how(tmp_path, monkeypatch):
    shutil.copytree(MODELS["dreamshaper8"].folder.parent, tmp_path / "dreamshaper8")
    monkeypatch.setenv("FASTVIZ_MODELS", str(tmp_path))
    whole, student = compare.final(compare(asked("dreamshaper8", steps=1, methods="full,sdxs")))
    assert whole.error is None and "`python -m fastviz fetch sdxs-dreamshaper`" in student.error
    pipe = models.load("dreamshaper8")
    assert sdxs.previewing(pipe) is pipe


def test_a_published_student_follows_a_sketch_by_its_own_network(places, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTVIZ_MODELS", str(tmp_path))
    for key, scale in (("sdxs-dreamshaper", 0.8), ("dreamshaper8", 0.5)):
        shutil.copytree(places / key, tmp_path / key)
        folder = sketch.path_of(MODELS[key].folder)
        network = sdxs_control() if scale == 0.8 else loud(ControlNetModel.from_unet(models.load(key).unet, conditioning_embedding_out_channels=(4, 8, 8, 16)))
        network.save_pretrained(folder)
        (folder / sketch.ABOUT).write_text(json.dumps({"teacher": fitted.weights(MODELS[key].folder), "scale": scale}))
        verified.write_hashes(tmp_path / key)
    drawn = io.BytesIO()
    Image.linear_gradient("L").point(lambda light: 255 * (light % 40 > 8)).save(drawn, "PNG")
    alone = compare.final(compare(asked("sdxs-dreamshaper", methods="full", sketch=drawn.getvalue())))[0]
    student = compare.final(compare(asked("dreamshaper8", steps=1, methods="full,sdxs", sketch=drawn.getvalue())))[1]
    assert student.image.tobytes() == alone.image.tobytes()


@pytest.mark.parametrize("key, guidance", [("sdxs-dreamshaper", 1.0), ("dreamshaper8", 5.0)])
def test_a_published_network_for_sketches_does_what_diffusers_pipeline_makes_of_it(key, guidance, tmp_path, monkeypatch):
    """It reads the prompt, other for each half of guidance, strokes are ones, and its residuals are scaled."""
    shutil.copytree(MODELS[key].folder.parent, tmp_path / key)
    monkeypatch.setenv("FASTVIZ_MODELS", str(tmp_path))
    pipe, folder = models.load(key), sketch.path_of(MODELS[key].folder)
    network = sdxs_control() if key == "sdxs-dreamshaper" else loud(ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8, 8, 16)))
    network.save_pretrained(folder)
    (folder / sketch.ABOUT).write_text(json.dumps({"teacher": fitted.weights(MODELS[key].folder), "scale": 0.8}))
    verified.write_hashes(tmp_path / key)
    drawn = io.BytesIO()
    Image.linear_gradient("L").point(lambda light: 255 * (light % 40 > 8)).save(drawn, "PNG")
    request = asked(key, steps=min(3, MODELS[key].most_steps), size=128, guidance=guidance, sketch=drawn.getvalue())
    run, without = (generate(pipe, one, (full.Knobs(),), request.steps) for one in (request, dataclasses.replace(request, sketch=None)))
    theirs = StableDiffusionControlNetPipeline(**pipe.components, controlnet=network)
    theirs.set_progress_bar_config(disable=True)
    plain = theirs(request.prompt, image=sketch.condition(request.sketch, 128), height=128, width=128, num_inference_steps=request.steps,
                   guidance_scale=guidance, controlnet_conditioning_scale=0.8, latents=noise(pipe, request), output_type="latent").images
    assert torch.allclose(run.latents, plain, atol=1e-4) and not torch.allclose(run.latents, without.latents, atol=1e-2)


@pytest.mark.parametrize("key, name", [("sd15", "DDIMScheduler"), ("dreamshaper8", "DDIMScheduler"), ("sdxl", "DDIMScheduler"),
                                       ("sdxs", "EulerDiscreteScheduler"), ("sdxs-dreamshaper", "DEISMultistepScheduler"),
                                       ("sd-turbo", "EulerDiscreteScheduler")])
def test_schedulers_are_those_of_the_table(key, name):
    config = models.load(key).scheduler.config
    assert config._class_name == name or type(models.load(key).scheduler).__name__ == name
    assert config.beta_start == BETAS["beta_start"] and not config.get("clip_sample") and not config.get("set_alpha_to_one")


@pytest.mark.parametrize("key", MADE)
def test_all_methods_that_the_table_allows_run_and_others_are_refused(key):
    few = min(4, MODELS[key].most_steps)
    able = [method for method in METHODS if method.KEY in MODELS[key].methods and method.KEY != "olss"]
    rows = ",".join("few_step(steps=2)" if method.KEY == "few_step" else method.KEY for method in able)
    found = compare.final(compare(asked(key, steps=few, methods=rows)))
    assert [row.error for row in found] == [None] * len(able) and all(row.applied for row in found)
    assert all(row.flops < found[0].flops for row in found[1:])
    for method in METHODS:
        if method.KEY not in MODELS[key].methods:
            with pytest.raises(BadRequest, match="changes nothing on"):
                asked(key, methods=method.KEY)


def test_requests_begin_with_the_models_own_values_and_keep_within_them():
    for key in MADE:
        request, model = asked(key), MODELS[key]
        assert (request.steps, request.guidance, request.size) == (model.steps, model.guidance, model.size)
        assert request.methods[0] == (full.Knobs(),) and len(request.methods) > 1
    for key, wrong, field in (("sdxs", {"steps": 2}, "steps"), ("sdxs", {"guidance": 2.0}, "guidance"),
                              ("sd-turbo", {"steps": 5}, "steps"), ("sd-turbo", {"methods": "few_step"}, "methods")):
        with pytest.raises(BadRequest) as told:
            asked(key, **wrong)
        assert told.value.field == field and MODELS[key].title in str(told.value)


def test_a_distilled_model_names_the_model_that_it_stands_for():
    assert "DreamShaper 8" in MODELS["sdxs-dreamshaper"].note and MODELS["sd15"].note == ""
    assert "choose that model" in MODELS["sdxs-dreamshaper"].note and "choose that model" not in MODELS["sdxs"].note
    assert all(bool(MODELS[key].reference) == (MODELS[key].most_steps < 100) for key in MODELS)


# SDXS: what one step makes of the network's answer

@pytest.mark.parametrize("key, of_noise, of_answer", [("sdxs-dreamshaper", 14.6426, -14.5793), ("sdxs", 14.6146, -14.6146)])
def test_the_one_step_is_the_closed_form_at_timestep_999_in_float32(key, of_noise, of_answer):
    pipe, request, seen = models.load(key), asked(key), []
    handle = pipe.unet.register_forward_hook(
        lambda module, args, told, answer: seen.append((args, answer[0])), with_kwargs=True)
    try:
        run = generate(pipe, request, (full.Knobs(),), 1)
    finally:
        handle.remove()
    ((sample, timestep), answer), = seen
    assert int(timestep) == 999 and sample.shape[0] == 1 and answer.dtype == torch.float32
    n, alphas = noise(pipe, request), pipe.scheduler.alphas_cumprod.double()
    sigma = ((1 - alphas[999]) / alphas[999]).sqrt()
    assert math.isclose(float(sigma), 14.6146, abs_tol=5e-5)
    expected = of_noise * n.double() + of_answer * answer.double()
    assert float((run.latents - expected).abs().max()) < 1e-3  # of values up to 60: the coefficients have four decimals


def test_half_precision_would_lose_what_the_one_step_amplifies():
    """x0 = 14.6146 (n - e) from an answer e that is exact: rounding it to half precision alone moves pictures of deviation 1."""
    draw, off = torch.Generator().manual_seed(0), {}
    n, x0 = (torch.randn(4, 64, 64, generator=draw, dtype=torch.double) for _ in range(2))
    answer = n - x0 / 14.6146
    for dtype in (torch.float16, torch.float32):
        found = 14.6146 * (n.to(dtype) - answer.to(dtype))
        assert found.dtype == dtype
        off[dtype] = float((found.double() - x0).abs().max())
    assert off[torch.float16] > 0.02 and off[torch.float32] < 1e-5
    for key in ("sdxs", "sdxs-dreamshaper"):
        assert models.dtypes(MODELS[key], models.PIPELINES[0], torch.device("cuda")) == torch.float32
    assert models.dtypes(MODELS["sd15"], models.PIPELINES[0], torch.device("cuda")) == torch.float16


# SDXL

def test_both_encoders_and_the_size_reach_the_network():
    pipe, request, seen = models.load("sdxl"), asked("sdxl", steps=2, size=192, guidance=3.0), []
    handle = pipe.unet.register_forward_pre_hook(lambda module, args, told: seen.append(told), with_kwargs=True)
    try:
        generate(pipe, request, (full.Knobs(),), 2)
    finally:
        handle.remove()
    told = network_inputs(encoded(pipe, request.prompt, True, pipe.device), request.size)
    added, ours = seen[0]["added_cond_kwargs"], told["added_cond_kwargs"]
    assert ours["time_ids"].tolist() == [[192, 192, 0, 0, 192, 192]] * 2 == added["time_ids"].tolist()
    assert torch.equal(ours["text_embeds"], added["text_embeds"])
    assert torch.equal(told["encoder_hidden_states"], seen[0]["encoder_hidden_states"])
    widths = [part.config.hidden_size for part in (pipe.text_encoder, pipe.text_encoder_2)]
    assert told["encoder_hidden_states"].shape[2] == sum(widths)


def test_sdxls_own_euler_steps_are_those_of_ddim():
    """The table runs SDXL with DDIM, so that its solver is that of all other full models. Up to the very end, which DDIM
    leaves at the first noise level, the two are the same rule in other units."""
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    told = dict(timestep_spacing="leading", **BETAS)
    ddim, euler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **told), EulerDiscreteScheduler(**told)
    ddim.set_timesteps(10), euler.set_timesteps(10)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 8, 8, generator=draw, dtype=torch.double)
    y = x * (euler.sigmas[0].double() ** 2 + 1).sqrt()
    assert ddim.timesteps.tolist() == euler.timesteps.tolist()
    for t, same in zip(ddim.timesteps[:-1], euler.timesteps):
        e = torch.randn(1, 4, 8, 8, generator=draw, dtype=torch.double)
        scaled = euler.scale_model_input(y, same)
        assert torch.allclose(scaled, x, atol=1e-4)
        x, y = ddim.step(e, t, x).prev_sample, euler.step(e, same, y).prev_sample


def test_flops_of_sdxl_are_those_of_its_parts():
    pipe, request = models.load("sdxl"), asked("sdxl", steps=2)
    counts = cost.flops(pipe, request, (full.Knobs(),), 2)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as mode, torch.nn.attention.sdpa_kernel(
            torch.nn.attention.SDPBackend.MATH):
        told = encoded(pipe, request.prompt, True, pipe.device)
        text = mode.get_total_flops()
        pipe.unet(noise(pipe, request).repeat(2, 1, 1, 1), 10, **network_inputs(told, request.size))
    assert counts["text"] == text and counts["steps"] == (mode.get_total_flops() - text,) * 2


@pytest.mark.parametrize("key", ["sdxl", "sdxs", "sdxs-dreamshaper"])
def test_the_look_inside_shows_every_row_its_words_and_what_was_skipped(key, tmp_path, monkeypatch):
    from fastviz.ui.inside import Inside
    from fastviz.ui.job import Job

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    job = Job(asked(key, steps=min(3, MODELS[key].most_steps), methods="full,tome,atedm" if key == "sdxl" else "full,tome"))
    list(job.changes())
    look = Inside(job)
    list(look.changes())
    assert look.state == "finished" and [view["error"] for view in look.views] == [None] * len(job.rows)
    wholes = [(name, block) for name, block in look.blocks]
    assert len(wholes) == {"sdxl": 2 * 2 + 2 * 3 + 3 + 3 * 3 + 3 * 2, "sdxs": 3 + 3 * 2, "sdxs-dreamshaper": 1 + 1 + 2 + 2}[key]
    assert [text for _, text in look.words] == ["a", "cat", "on", "the", "beach"]
    for show in ("skipped", look.words[1][0], [0.5, 0.5]):
        drawn = look.overlay({"key": 1, "block": wholes[0][0], "show": show, "kinds": {}})
        assert next(iter(drawn["rows"]["1"].values()))["sheet"].startswith("data:image/png")
    environment = job.board()["environment"]
    assert ("DreamShaper 8" in environment.get("model", "")) == (key == "sdxs-dreamshaper")


# What is refused, and what the folder must be

def test_a_fetched_model_without_a_record_is_not_loaded(places):
    record = places / "sd15" / verified.HASHES
    told = record.read_text()
    record.unlink()
    try:
        with pytest.raises(BadModel, match="python -m fastviz fetch sd15"):
            models.load("sd15")
    finally:
        record.write_text(told)


def test_a_model_that_was_not_fetched_says_how(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FASTVIZ_MODELS", str(tmp_path))
    for find in (models.load, lambda key: reading.prompt_cut(key, "a cat")):
        with pytest.raises(BadModel, match="`python -m fastviz fetch sdxl`"):
            find("sdxl")
    assert command.main(["compare", "a cat", "--model", "sdxl", "--out", str(tmp_path / "out")]) == 1
    assert "python -m fastviz fetch sdxl" in capsys.readouterr().err


def test_too_little_memory_is_told_before_anything_is_read(monkeypatch):
    monkeypatch.setitem(MODELS, "sd15", dataclasses.replace(MODELS["sd15"], parameters=10_000_000.0))
    with pytest.raises(BadModel, match=r"takes about \d+\.\d GiB of memory"):
        models.load("sd15")


@pytest.mark.parametrize("change, sentence", [
    ({"_class_name": "KandinskyPipeline"}, "only StableDiffusionPipeline"),
    ({"unet": ["my_module", "UNet2DConditionModel"]}, "asks for code of my_module"),
    (None, "no folder of a diffusers pipeline")])
def test_code_of_strangers_is_refused(places, tmp_path, change, sentence):
    told = json.loads((places / "sd15/model/model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(told | change) if change else "[]")
    with pytest.raises(BadModel, match=sentence):
        models.index(tmp_path)


# Parameters in the table, from the published configurations at full width on the meta device

def clip(width, layers, heads, kind=CLIPTextModel):
    return kind(CLIPTextConfig(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
                               num_attention_heads=heads, projection_dim=width))


def big_decoder():
    return AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2,
                         down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)


def small(context, attention=(0, 1, 1), **more):
    return UNet2DConditionModel(block_out_channels=(320, 640, 1280), layers_per_block=1, mid_block_type=None,
                                cross_attention_dim=context, attention_head_dim=8, **sides(*attention), **more)


WHOLE = {
    "sd15": lambda: (UNet2DConditionModel(cross_attention_dim=768), clip(768, 12, 12), big_decoder()),
    "sd-turbo": lambda: (UNet2DConditionModel(cross_attention_dim=1024, use_linear_projection=True), clip(1024, 23, 16),
                         big_decoder()),
    "sdxl": lambda: (UNet2DConditionModel(
        block_out_channels=(320, 640, 1280), **sides(0, 1, 1), transformer_layers_per_block=(1, 2, 10), cross_attention_dim=2048,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816), clip(768, 12, 12), clip(1280, 32, 20, CLIPTextModelWithProjection),
        big_decoder()),
    "sdxs": lambda: (small(1024, (1, 1, 1), only_cross_attention=(True, False, False)), clip(1024, 23, 16), AutoencoderTiny()),
    "sdxs-dreamshaper": lambda: (small(768), clip(768, 12, 12), AutoencoderTiny()),
}


@pytest.mark.parametrize("key", WHOLE)
def test_parameters_are_those_of_the_published_configurations(key):
    with torch.device("meta"):
        found = sum(parameter.numel() for part in WHOLE[key]() for parameter in part.parameters()) / 1e6
    assert round(found, 1) == next(m for m in checkpoints_table() if m.key == key).parameters


def checkpoints_table():
    """The table as it is written, without what the fixture changed."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("checkpoints_again", checkpoints.__file__)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.MODELS.values()


def test_every_revision_is_a_whole_commit():
    pinned = [each for model in MODELS.values() for each in (model, model.control) if each and each.hub]
    assert len(pinned) == len(MADE) + 1 and all(re.fullmatch("[0-9a-f]{40}", each.revision) for each in pinned)


def test_the_published_sdxs_has_the_size_of_its_file():
    with torch.device("meta"):
        network = UNet2DConditionModel(**SDXS_512)
    header = 1312752864 - 4 * sum(weight.numel() for weight in network.state_dict().values())
    assert 8 + 90 * len(network.state_dict()) < header < 8 + 150 * len(network.state_dict())  # a line of JSON for each tensor
