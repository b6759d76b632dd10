"""A sketch and a start picture: what is refused at the door, the arithmetic of both in every row, and their way into recipes."""

import io
import json
import struct
import urllib.parse
import zlib

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionImg2ImgPipeline
from PIL import Image, ImageDraw

from test_contract import assert_unchanged, every_stack, fingerprint, raising

from fastviz import __main__ as command
from fastviz import cost, fitted, given, models, profile, sketch, store, verified
from fastviz.cost import total
from fastviz.methods import METHODS, full, method_of, sdxs
from fastviz.patch import Refused
from fastviz.request import BadRequest, Request
from fastviz.run import generate, noise
from fastviz.stickers.sketch import network
from fastviz.trace import Trace
from fastviz.ui import draw, restore

FULL = (full.Knobs(),)
STEPS = 4


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def drawing(*box):
    image = Image.new("L", (256, 256), 255)
    if box:
        ImageDraw.Draw(image).ellipse(box, outline=0, width=4)
    return encoded(image)


RING = drawing(60, 60, 190, 190)
PICTURE = encoded(Image.linear_gradient("L").convert("RGB"))


def asked(**told):
    return Request("a cat on the beach", seed=11, steps=STEPS, size=128, guidance=3.0, methods="full", **told)


@pytest.fixture(scope="module")
def sketch_home(tiny_pipe, tiny_home):
    """The tiny pipeline's folder with a network for sketches, of random weights that do change something."""
    torch.manual_seed(3)
    control = network.untrained(tiny_pipe.unet)
    for layer in (*control.controlnet_down_blocks, control.controlnet_mid_block, control.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(layer.weight, std=0.3)
    folder = sketch.path_of(tiny_home)
    control.save_pretrained(folder)
    (folder / sketch.ABOUT).write_text(json.dumps({"teacher": fitted.weights(tiny_home)}))
    return folder


# At the door

def bomb():
    """A PNG of a few hundred bytes that says it has 40000 x 40000 px."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name, data, sentence", (
    ("sketch", "text", "must be a PNG of 256 x 256"),
    ("sketch", b"", "must be a PNG of 256 x 256"),
    ("sketch", b"no picture", "must be a PNG of 256 x 256"),
    ("sketch", RING + bytes(200_000), "200 KB at most"),
    ("sketch", encoded(Image.new("L", (300, 256))), "this one has 300 x 256"),
    ("sketch", encoded(Image.new("RGB", (256, 256)), "JPEG"), "must be a PNG"),
    ("sketch", RING[:120], "damaged"),
    ("sketch", bomb(), "must be a PNG of 256 x 256"),
    ("start", 7, "must be a PNG, JPEG or WebP"),
    ("start", b"GIF89a", "must be a PNG, JPEG or WebP"),
    ("start", encoded(Image.new("RGB", (256, 256)), "GIF"), "must be a PNG, JPEG or WebP"),
    ("start", bytes(2_000_001), "2000 KB at most"),
    ("start", encoded(Image.new("RGB", (300, 256))), "this one has 300 x 256"),
    ("start", encoded(Image.new("RGB", (32, 32))), "64 to 1024"),
    ("start", PICTURE[:200], "damaged"),
    ("start", bomb(), "must be a PNG, JPEG or WebP"),
))
def test_what_is_no_such_picture_is_refused_with_one_sentence(name, data, sentence):
    with pytest.raises(BadRequest, match=sentence) as told:
        asked(**{name: data})
    assert told.value.field == name and str(told.value).endswith(".")


@pytest.mark.parametrize("strength", (0, 0.05, 1.1, float("nan"), "0.5", True))
def test_a_strength_out_of_bounds_is_refused(strength):
    with pytest.raises(BadRequest, match="Strength must be a number from 0.1 to 1") as told:
        asked(start=PICTURE, strength=strength)
    assert told.value.field == "strength"


def test_equal_drawings_are_equal_requests_whatever_file_they_came_in():
    image = Image.open(io.BytesIO(RING))
    clear = Image.new("RGBA", image.size)
    clear.paste("black", mask=image.point(lambda light: 255 - light))
    assert asked(sketch=RING) == asked(sketch=encoded(image.convert("RGB"))) == asked(sketch=encoded(clear))
    assert hash(asked(sketch=RING)) == hash(asked(sketch=encoded(clear)))
    assert asked(sketch=RING) != asked() != asked(start=PICTURE)


def test_an_empty_sheet_is_no_sketch_and_no_picture_has_no_strength():
    assert asked(sketch=drawing()) == asked()
    assert asked(strength=0.3) == asked()
    assert asked(start=PICTURE, strength=0.3) != asked(start=PICTURE)


def test_the_worst_drawing_fits_into_a_recipe():
    torch.manual_seed(0)
    scribble = encoded(Image.fromarray((255 * (torch.rand(256, 256) > 0.5)).byte().numpy()))
    kept = asked(sketch=scribble).sketch
    assert len(kept) < 8700 and len(json.dumps(store.recipe(asked(sketch=scribble)))) < 12_500


# A sketch in a run

def test_a_sketch_is_what_diffusers_own_pipeline_makes_of_it(tiny_pipe, sketch_home):
    request = asked(sketch=RING)
    run = generate(tiny_pipe, request, FULL, STEPS)
    control = ControlNetModel.from_pretrained(sketch_home)
    theirs = StableDiffusionControlNetPipeline(**tiny_pipe.components, controlnet=control)
    theirs.set_progress_bar_config(disable=True)
    strokes = sketch.condition(request.sketch, 128)
    plain = theirs(request.prompt, image=strokes, height=128, width=128, num_inference_steps=STEPS, guidance_scale=3.0,
                   latents=noise(tiny_pipe, request), output_type="latent").images
    assert torch.allclose(run.latents, plain, atol=1e-4)
    assert not torch.allclose(run.latents, generate(tiny_pipe, asked(), FULL, STEPS).latents, atol=1e-2)


def test_the_network_sees_strokes_as_ones(sketch_home):
    seen = sketch.condition(asked(sketch=RING).sketch, 256)[0, 0].numpy()
    assert np.array_equal(seen, 1 - np.asarray(Image.open(io.BytesIO(asked(sketch=RING).sketch)).convert("L")) / 255)
    assert 0 < seen.mean() < 0.1 and set(np.unique(seen)) == {0, 1}


def test_a_sketch_costs_what_its_network_executes(tiny_pipe, sketch_home):
    with_it, without = (cost.flops(tiny_pipe, request, FULL, STEPS) for request in (asked(sketch=RING), asked()))
    assert with_it["text"] == without["text"] and with_it["decoder"] == without["decoder"]
    control, mode = ControlNetModel.from_pretrained(sketch_home), cost.Flops()
    from fastviz.bare import bare_module

    bare = bare_module(control)
    told = [torch.empty(shape, device="meta") for shape in ((1, 4, 16, 16), (), (1, 24, 32), (1, 3, 128, 128))]
    with torch.no_grad(), mode:
        bare(*told)
    assert {a - b for a, b in zip(with_it["steps"], without["steps"])} == {mode.total}


def test_a_student_follows_a_sketch_with_the_stages_that_it_kept(tiny_pipe, sketch_home):
    one, other, none = (generate(tiny_pipe, asked(sketch=data), (sdxs.Knobs(),), 1).latents
                        for data in (RING, drawing(10, 10, 80, 80), None))
    assert not torch.equal(one, none) and not torch.equal(one, other)


def test_without_a_network_a_sketch_is_refused(tiny_pipe, sketch_home):
    with pytest.raises(Refused, match="this model has none"):
        from conftest import make_tiny
        generate(make_tiny(), asked(sketch=RING), FULL, STEPS)


def test_a_network_of_other_weights_is_refused(tiny_pipe, sketch_home):
    about = sketch_home / sketch.ABOUT
    right = about.read_text()
    try:
        for told, sentence in (('{"teacher": "0"}', "made for other weights"), ("{", "cannot be read")):
            about.write_text(told)
            with pytest.raises(Refused, match=sentence):
                generate(tiny_pipe, asked(sketch=RING), FULL, STEPS)
    finally:
        about.write_text(right)
    generate(tiny_pipe, asked(sketch=RING), FULL, STEPS)


def test_a_damaged_network_is_refused(tmp_path):
    (tmp_path / "sketch").mkdir()
    (tmp_path / "sketch/config.json").write_text("{}")
    with pytest.raises(verified.BadModel, match="could not be read"):
        models.load_control(tmp_path / "sketch")


# A start picture in a run

@pytest.mark.parametrize("solver", ("full", "few_step(solver=dpm,steps=0)", "few_step(solver=unipc,steps=0)"))
@pytest.mark.parametrize("strength, total", ((0.5, 8), (0.8, 5), (1.0, 4)))
def test_a_start_picture_is_what_diffusers_own_pipeline_makes_of_it(tiny_pipe, solver, strength, total):
    request = Request("a cat", seed=5, steps=STEPS, size=128, guidance=3.0, methods=solver, start=PICTURE, strength=strength)
    stack = request.methods[-1]
    run = generate(tiny_pipe, request, stack, STEPS)
    theirs = StableDiffusionImg2ImgPipeline(**tiny_pipe.components)
    theirs.set_progress_bar_config(disable=True)
    if solver != "full":
        from fastviz.methods import few_step
        theirs.scheduler = few_step.scheduler(stack[0].solver, tiny_pipe.scheduler.config)
    pixels = given.picture(request.start).resize((128, 128), Image.LANCZOS)
    found = []
    own = theirs.scheduler.add_noise
    theirs.scheduler.add_noise = lambda clean, drawn, t: own(clean, noise(tiny_pipe, request), t)
    plain = theirs(request.prompt, image=pixels, strength=min(1.0, STEPS / total + 1e-9), num_inference_steps=total, guidance_scale=3.0,
                   generator=torch.Generator().manual_seed(0), output_type="latent",
                   callback_on_step_end=lambda pipe, i, t, told: found.append(int(t)) or {}).images
    assert len(found) == STEPS == len(run.steps)
    assert torch.allclose(run.latents, plain, atol=2e-4), float((run.latents - plain).abs().max())


def test_less_strength_keeps_more_of_the_picture(tiny_pipe):
    def distance(strength):
        run = generate(tiny_pipe, asked(start=PICTURE, strength=strength), FULL, STEPS)
        from fastviz import begin
        return float((run.latents - begin.encoded(tiny_pipe, asked(start=PICTURE).start, 128)).pow(2).mean())

    near, middle, far = (distance(strength) for strength in (0.1, 0.5, 1.0))
    assert near < middle < far


def test_every_number_of_steps_stays_on_its_timesteps(tiny_pipe):
    from fastviz import begin
    scheduler = type(tiny_pipe.scheduler).from_config(tiny_pipe.scheduler.config)
    for steps in (1, 7, 30, 61, 100):
        for strength in (0.1, 0.29, 0.5, 0.983, 1.0):
            scheduler = type(scheduler).from_config(scheduler.config)
            begin.late(scheduler, steps, strength)(steps)
            found = scheduler.timesteps.tolist()
            assert len(found) == steps == len(set(found)) and min(found) >= 0 and found == sorted(found, reverse=True)
            assert steps == 1 or abs(found[0] - (1000 * strength - 1)) <= 1000 / steps


def test_a_student_begins_at_the_one_timestep_that_is_meant(tiny_pipe, tiny_home):
    seen, unet = [], sdxs.load(tiny_pipe).unet
    handle = unet.register_forward_pre_hook(lambda module, args, kwargs: seen.append(int(args[1])), with_kwargs=True)
    try:
        for strength in (0.1, 0.7, 1.0):
            generate(tiny_pipe, asked(start=PICTURE, strength=strength), (sdxs.Knobs(),), 1)
    finally:
        handle.remove()
    assert seen == [99, 699, 999]


def test_a_fitted_schedule_does_not_start_from_a_picture(tiny_pipe, tiny_home):
    request = Request("a cat", steps=STEPS, size=128, guidance=3.0, methods="olss(steps=4)", start=PICTURE)
    with pytest.raises(Refused, match="begins at pure noise"):
        generate(tiny_pipe, request, request.methods[1], 4)


# In recipes and links

def test_a_recipe_holds_the_drawing_and_names_the_start_picture():
    request = asked(sketch=RING, start=PICTURE, strength=0.4)
    told = json.loads(json.dumps(store.recipe(request)))
    assert store.read_recipe(told) == asked(sketch=RING)
    assert told["start"].startswith("sha256:") and told["strength"] == 0.4
    assert store.lacking(told) == "The start picture is not in it, only its hash: choose it again for the same pictures."
    assert store.lacking(store.recipe(asked(sketch=RING))) == ""


def test_a_link_only_names_both():
    told = dict(urllib.parse.parse_qsl(store.query(asked(sketch=RING, start=PICTURE))))
    assert len(store.query(asked(sketch=RING))) < 300
    assert store.from_query(told) == asked() and store.lacking(told).count("is not in it") == 2
    assert "open a PNG that was saved with it" in store.lacking(dict(urllib.parse.parse_qsl(store.query(asked(sketch=RING)))))


def test_recipes_without_pictures_are_as_they_were():
    assert set(store.recipe(asked())) == {store.CHUNK, *store.FIELDS}
    assert store.query(asked()).count("=") == len(store.FIELDS) and store.lacking(store.recipe(asked())) == ""


@pytest.mark.parametrize("text", (7, "not base64!", "aGVsbG8=", ["x"]))
def test_a_damaged_drawing_in_a_recipe_is_refused(text):
    with pytest.raises(BadRequest) as told:
        store.read_recipe({**store.recipe(asked()), "sketch": text})
    assert told.value.field == "sketch"


# What every method promises, with a sketch and a start picture too

def given_to(stack):
    """A request with both, for a stack that can begin at a picture, else with a sketch alone."""
    return asked(sketch=RING) if any(method_of(knobs).KEY == "olss" and knobs.steps for knobs in stack) else asked(sketch=RING, start=PICTURE)


@every_stack
def test_a_run_with_both_leaves_the_pipeline_as_it_was(tiny_pipe, sketch_home, stack):
    before, control = fingerprint(tiny_pipe), models.load_control(sketch_home)
    weights = {name: value.clone() for name, value in control.state_dict().items()}
    run = generate(tiny_pipe, given_to(stack), stack, STEPS)
    assert torch.isfinite(run.latents).all()
    assert not torch.equal(run.latents, generate(tiny_pipe, asked(), stack, STEPS).latents)
    with raising(tiny_pipe, ZeroDivisionError(), step=1), pytest.raises(ZeroDivisionError):
        generate(tiny_pipe, given_to(stack), stack, STEPS)
    assert_unchanged(tiny_pipe, before)
    assert all(torch.equal(weights[name], value) for name, value in control.state_dict().items())
    assert "forward" not in vars(control) and "forward" not in vars(control.controlnet_cond_embedding)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.KEY)
def test_neutral_knobs_are_the_full_model_with_both_too(tiny_pipe, sketch_home, method):
    request = asked(sketch=RING, start=PICTURE)
    full_run, neutral = (generate(tiny_pipe, request, (knobs,), STEPS) for knobs in (full.Knobs(), method.NEUTRAL))
    assert torch.equal(full_run.latents, neutral.latents) and neutral.acted == {}
    assert total(cost.flops(tiny_pipe, request, (method.NEUTRAL,), STEPS)) == total(cost.flops(tiny_pipe, request, FULL, STEPS))


# On the command line

QUICK = ["--size", "128", "--steps", "2", "--repeats", "1", "--methods", "full", "--no-history"]


def test_the_command_line_takes_both_as_files(tiny_pipe, sketch_home, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(models._loaded, "stickers", tiny_pipe)
    (tmp_path / "sketch.png").write_bytes(RING)
    (tmp_path / "start.png").write_bytes(PICTURE)
    told = ["--sketch", str(tmp_path / "sketch.png"), "--start", str(tmp_path / "start.png"), "--strength", "0.4", "--out", str(tmp_path / "out")]
    assert command.main(["compare", "a cat", *told, *QUICK]) == 0
    kept = json.loads((tmp_path / "out/run.json").read_text())["recipe"]
    assert kept["strength"] == 0.4 and store.read_recipe(kept).sketch == asked(sketch=RING).sketch


@pytest.mark.parametrize("more, sentence", (
    (["--sketch", "nowhere.png"], "nowhere.png cannot be read"), (["--start", __file__], "must be a PNG, JPEG or WebP"),
    (["--strength", "7", "--start", "START"], "Strength must be a number")))
def test_the_command_line_refuses_with_a_sentence(tmp_path, capsys, more, sentence):
    (tmp_path / "start.png").write_bytes(PICTURE)
    assert command.main(["compare", "a cat", *(str(tmp_path / "start.png") if each == "START" else each for each in more), *QUICK]) == 2
    assert sentence in capsys.readouterr().err


# On the page

def test_controls_hold_both():
    for request in (asked(), asked(sketch=RING), asked(start=PICTURE, strength=0.25), asked(sketch=RING, start=PICTURE)):
        assert asked(**draw.asked(draw.values(request))) == request


@pytest.mark.parametrize("told, field", (
    ({"sketch": 7}, "sketch"), ({"sketch": "data:image/png;base64,%%"}, "sketch"), ({"sketch": {"a": 1}}, "sketch"),
    ({"start": [1]}, "start"), ({"start": "text"}, "start"), ({"start": {"picture": 7}}, "start"), ({"start": {"picture": "x" * 5_000_000}}, "start"),
    ({"start": {"picture": f"data:image/png;base64,{given.text(PICTURE)}", "strength": "much"}}, "strength"),
    ({"start": {"picture": f"data:image/png;base64,{given.text(PICTURE)}"}}, "strength"),
))
def test_what_the_page_cannot_have_sent_is_refused(told, field):
    with pytest.raises(BadRequest) as refusal:
        asked(**draw.asked(told))
    assert refusal.value.field == field


def test_an_emptied_control_holds_nothing():
    assert draw.asked({"sketch": "", "start": ""}) == draw.asked({}) == {"sketch": None, "start": None}


def test_a_drawing_that_no_model_here_follows_is_left_out_of_restored_settings(sketch_home, monkeypatch):
    monkeypatch.setattr(restore.sketch, "missing", lambda folder: "There is none.")
    request, why = restore.followable(asked(sketch=RING, start=PICTURE))
    assert request == asked(start=PICTURE) and why.startswith("Its drawing is left out")
    monkeypatch.setattr(restore.sketch, "missing", lambda folder: "")
    assert restore.followable(asked(sketch=RING)) == (asked(sketch=RING), "")
    monkeypatch.setattr(profile.sketch, "missing", lambda folder: "There is none.")
    with pytest.raises(BadRequest, match="There is none") as refusal:
        profile.load().check(asked(sketch=RING))
    assert refusal.value.field == "sketch"


@pytest.mark.parametrize("name, value", (("sketch", "data:image/png;base64,AA"), ("start", {"picture": "AA", "strength": 0.5})))
def test_a_sweep_that_would_not_follow_is_refused(name, value):
    import gradio as gr

    from fastviz.ui.sweep import Controls

    with gr.Blocks():
        controls = Controls(profile.load())
    values = [part.value for part in controls.all]
    told = {"prompt": "a cat", "model": "stickers", "steps": 2, "guidance": 3.0, "size": 128}
    assert controls.plan(values, told | {name: ""}).prompts == ("a cat",)
    with pytest.raises(BadRequest, match="follows no sketch and starts from no picture"):
        controls.plan(values, told | {name: value})


def test_a_look_inside_sees_the_run_that_was_timed(tiny_pipe, sketch_home):
    request, stack = asked(sketch=RING, start=PICTURE), (full.Knobs(),)
    trace = Trace()
    assert torch.equal(generate(tiny_pipe, request, stack, STEPS, trace=trace).latents, generate(tiny_pipe, request, stack, STEPS).latents)
    assert len(trace.channels["estimate"]) == STEPS and trace.channels["attention.cross"]
