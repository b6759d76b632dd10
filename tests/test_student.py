"""The row of the one-step student: what it changes, when it is refused, and that nobody is offered what is not there."""

import base64
import copy
import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import at_home, make_student, make_tiny
from PIL import Image

from fastviz import cost, fitted, given, models, sketch, verified, views
from fastviz.compare import compare, final
from fastviz.methods import full, sdxs, steps_of, tome
from fastviz.models import MODELS
from fastviz.patch import Refused
from fastviz.request import BadRequest, Request, methods_text
from fastviz.run import generate, noise, pictures
from fastviz.stickers import parts
from fastviz.stickers.sdxs import network as students
from fastviz.stickers.sketch import network
from fastviz.trace import Context, Trace
from fastviz.ui import figures

REQUEST = Request("a cat on the beach", seed=11, steps=4, size=128, guidance=3.0)
BOTH, UNET, DECODER = sdxs.Knobs(), sdxs.Knobs(decoder=False), sdxs.Knobs(unet=False)


@pytest.fixture
def home(tiny_home, tiny_pipe):
    """The folder of the tiny pipeline, with its student beside it; the student is put back as it was."""
    student = sdxs.path_of(tiny_home)
    kept = student.with_name("kept")
    shutil.copytree(student, kept)
    yield tiny_home
    shutil.rmtree(student, ignore_errors=True)
    kept.rename(student)


def drawn(pipe, knobs, request=REQUEST):
    return generate(pipe, request, (knobs,), steps_of((knobs,), request.steps))


def test_one_step_without_guidance_through_both_small_networks(tiny_pipe, home):
    student = models.load_beside(sdxs.path_of(home))
    run = drawn(tiny_pipe, BOTH)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(11))
    plain = student(REQUEST.prompt, num_inference_steps=1, guidance_scale=1.0, latents=noise, height=128, width=128).images[0]
    assert len(run.steps) == 1 and np.array_equal(run.image, plain)
    assert run.acted == {"sdxs": (4, 1)}  # network, text encoder, scheduler and decoder, in the only step


def test_each_part_can_be_had_alone(tiny_pipe, home):
    whole, alone = drawn(tiny_pipe, full.Knobs()), drawn(tiny_pipe, DECODER)
    assert torch.equal(whole.latents, alone.latents) and not np.array_equal(whole.image, alone.image)
    assert torch.equal(drawn(tiny_pipe, UNET).latents, drawn(tiny_pipe, BOTH).latents)
    assert (steps_of((BOTH,), 50), steps_of((UNET,), 50), steps_of((DECODER,), 50)) == (1, 1, 50)


def test_guidance_is_the_requests_again_afterwards(tiny_pipe, home):
    context = Context(1, guidance=3.0)
    with sdxs.attach(tiny_pipe, BOTH, context) as pipe:
        assert context.guidance == 1.0 and pipe is not tiny_pipe and pipe.unet is not tiny_pipe.unet
    assert context.guidance == 3.0
    guided = Request("a cat on the beach", seed=11, steps=4, size=128, guidance=9.0)
    assert torch.equal(drawn(tiny_pipe, BOTH, guided).latents, drawn(tiny_pipe, BOTH).latents)


@pytest.mark.parametrize("answers", ("epsilon", "v_prediction"))  # as the public students, and as our own
def test_the_last_step_is_the_closed_form_in_float32_where_the_network_computes_in_half_precision(tmp_path, monkeypatch, answers):
    pipe, seen = make_tiny().to(torch.float16), []
    student = make_student(make_tiny(), tmp_path / "model")
    with at_home(pipe, tmp_path / "model") as home:
        (student / sdxs.ABOUT).write_text(json.dumps({"teacher": fitted.weights(home)}))
        half = copy.deepcopy(models.load_beside(student)).to(torch.float16)
        monkeypatch.setitem(models._beside, (student, ""), (models._beside[student, ""][0], half))
        half.scheduler = students.scheduler(half.scheduler.config, answers)
        half.unet.register_forward_hook(lambda module, args, answer: seen.append(answer[0]))
        run = drawn(pipe, BOTH)
    (answer,), alpha = seen, half.scheduler.alphas_cumprod[-1].double()
    sigma, n = ((1 - alpha) / alpha).sqrt(), noise(pipe, REQUEST)
    assert answer.dtype == n.dtype == torch.float16 and 14 < sigma < 15
    n = (n * sigma.float()).double() / sigma  # the network was shown what the pipeline's own product had rounded
    wanted = sigma * (n - answer.double()) if answers == "epsilon" else alpha.sqrt() * n * (1 - alpha).sqrt() - (1 - alpha).sqrt() * answer.double()
    assert torch.allclose(run.latents.double(), wanted, rtol=0, atol=1e-4)


def test_flops_are_those_of_the_small_networks(tiny_pipe, home):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    student = models.load_beside(sdxs.path_of(home))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as step:
            student.unet(torch.zeros(1, 4, 16, 16), 5, encoder_hidden_states=torch.zeros(1, 24, 32))
        with FlopCounterMode(display=False) as decoder:
            student.vae.decode(torch.zeros(1, 4, 16, 16))
    told = cost.flops(tiny_pipe, REQUEST, (BOTH,), 1)
    assert told["steps"] == (step.get_total_flops(),) and told["decoder"] == decoder.get_total_flops()
    assert cost.total(told) < 0.2 * cost.total(cost.flops(tiny_pipe, REQUEST, (full.Knobs(),), 4))


def test_other_methods_edit_the_network_that_runs(tiny_pipe, home):
    """In whichever order a stack is written, merging happens in the student."""
    merge = tome.Knobs()
    one, other = (generate(tiny_pipe, REQUEST, stack, 1) for stack in ((BOTH, merge), (merge, BOTH)))
    assert torch.equal(one.latents, other.latents) and not torch.equal(one.latents, drawn(tiny_pipe, BOTH).latents)
    assert set(one.acted) == {"sdxs", "tome"}
    counts = [cost.total(cost.flops(tiny_pipe, REQUEST, stack, 1)) for stack in ((BOTH, merge), (merge, BOTH), (BOTH,))]
    assert counts[0] == counts[1] < counts[2]


def test_a_traced_run_records_the_students_estimate(tiny_pipe, home):
    trace = Trace()
    run = generate(tiny_pipe, REQUEST, (BOTH,), 1, trace=trace)
    (step, _), estimate = next(iter(trace.channels["estimate"].items()))
    assert step == 0 and torch.allclose(torch.tensor(estimate).float(), run.latents[0], rtol=2e-3, atol=2e-2)
    assert all(layer.startswith(("down_blocks.1", "up_blocks.0")) for _, layer in trace.channels["attention.self"])


def spoil(student):
    weights = next((student / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])


@pytest.mark.parametrize("damage, says", (
    (shutil.rmtree, "no one-step student, there is no stickers/sdxs: make it with `python -m fastviz.stickers export-student`"),
    (lambda student: (student / sdxs.ABOUT).write_text("{"), "cannot be read"),
    (lambda student: (student / sdxs.ABOUT).write_text("[]"), "cannot be read"),
    (lambda student: (student / sdxs.ABOUT).write_text('{"teacher": "x"}'), "made for other weights"),
    (lambda student: (student / "evil.bin").write_text(""), "evil.bin is no file for a model"),
    (spoil, "could not be read"),
))
def test_a_student_that_is_not_right_is_refused_with_what_to_do(tiny_pipe, home, damage, says):
    damage(sdxs.path_of(home))
    with pytest.raises(Refused, match=says) as told:
        drawn(tiny_pipe, BOTH)
    assert "export-student" in str(told.value) and str(told.value).endswith(".")
    assert drawn(tiny_pipe, sdxs.NEUTRAL).acted == {}  # neutral needs no student


def test_a_model_without_a_folder_has_no_student():
    assert "leave this row out" in sdxs.missing(None)


def test_a_refused_row_says_so_and_the_others_go_on(tiny_pipe, home, monkeypatch):
    monkeypatch.setitem(models._loaded, "stickers", tiny_pipe)
    asked = Request("a cat", steps=2, size=128, repeats=1, methods="full,sdxs,few_step(steps=1)")
    rows = final(compare(asked))
    assert [row.error for row in rows] == [None] * 3 and rows[1].applied and (rows[1].steps, rows[1].speedup > 0) == (1, True)
    shutil.rmtree(sdxs.path_of(home))
    rows = final(compare(asked))
    assert [bool(row.error) for row in rows] == [False, True, False] and "export-student" in rows[1].error


def test_a_student_stacks_with_no_scheduler():
    with pytest.raises(BadRequest, match="brings its own scheduler"):
        Request("a cat", methods="sdxs+few_step")
    assert methods_text(Request("a cat", methods="sdxs(decoder=false)+tome").methods) == "full,sdxs(decoder=false)+tome"


def test_the_row_is_offered_as_soon_as_the_weights_are_there(tmp_path, monkeypatch):
    model = MODELS["stickers"]
    monkeypatch.setitem(MODELS, "stickers", type(model)(**{**vars(model), "source": str(tmp_path / "stickers/model")}))
    (tmp_path / "stickers/model").mkdir(parents=True)
    assert not sdxs.ready()
    student = sdxs.path_of(MODELS["stickers"].folder)
    student.mkdir()
    (student / sdxs.ABOUT).write_text(json.dumps({"teacher": fitted.weights(tmp_path / "stickers/model")}))
    assert sdxs.ready()


def test_the_page_offers_what_is_there_and_keeps_a_link_to_what_is_not(monkeypatch):
    from fastviz import profile
    from fastviz.ui import ask
    from fastviz.ui.page import Page

    there = tuple(method for method in ask.CHOSEN if method is not sdxs)
    assert (sdxs in ask.CHOSEN) == sdxs.ready()
    monkeypatch.setattr(ask, "CHOSEN", there)
    controls = Page(profile.load()).ask
    told = dict(zip(controls.controls, controls.values(Request("a cat", methods="tome,sdxs(decoder=false)"))))
    assert "sdxs" not in controls.controls and told["more"] == "sdxs(decoder=false)"
    assert methods_text(controls.request(list(told.values())).methods) == "full,tome,sdxs(decoder=false)"


def test_the_figures_of_a_row_are_of_what_it_has_from_the_student(tiny_pipe, home):
    """The decoders on its own latents, each asked once for both colours of the page."""
    student, latents = models.load_beside(sdxs.path_of(home)), np.random.default_rng(0).normal(size=(4, 16, 16)).astype(np.float16)
    asked = []
    hooks = [pipe.vae.decoder.register_forward_hook(lambda *told, pipe=pipe: asked.append(pipe)) for pipe in (tiny_pipe, student)]
    titles = [[each["title"] for each in figures.of_row(tiny_pipe, REQUEST, (knobs,), latents)] for knobs in (BOTH, UNET, sdxs.NEUTRAL)]
    (shown,) = figures.of_row(tiny_pipe, REQUEST, (DECODER,), latents)
    for hook in hooks:
        hook.remove()
    assert titles == [["What was taken out of the network", "What the small decoder loses"], ["What was taken out of the network"], []]
    assert asked == [tiny_pipe, student] * 2 and figures.of_row(tiny_pipe, REQUEST, (DECODER,)) == []
    both = [pictures(pipe, torch.from_numpy(latents)[None])[0] for pipe in (tiny_pipe, student)]
    assert both[0].tobytes() != both[1].tobytes()
    for name, dark in (("light", False), ("dark", True)):
        mine, expected = (np.asarray(Image.open(io.BytesIO(data))) for data in (
            base64.b64decode(shown[name].partition(",")[2]), views.png(views.decoders(*both, dark))))
        assert np.array_equal(mine, expected)


def loud(unet):
    """A network for sketches whose residuals are large."""
    torch.manual_seed(len(unet.down_blocks))
    control = network.untrained(unet).eval()
    for layer in (*control.controlnet_down_blocks, control.controlnet_mid_block, control.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(layer.weight, std=0.3)
    return control


def test_a_student_follows_sketches_by_its_own_network_where_it_has_one(tiny_pipe, tmp_path):
    """As it was trained to: the picture is the one that training draws."""
    drawing = Image.new("L", (given.SIDE,) * 2, 255)
    drawing.paste(0, (64, 32, 192, 96))
    asked = dataclasses.replace(REQUEST, sketch=given.sketch(given.png(drawing)))
    with at_home(tiny_pipe, tmp_path / "model") as folder:
        unet = models.load_beside(make_student(tiny_pipe, folder)).unet
        small = loud(unet)
        for control, place, whose in ((loud(tiny_pipe.unet), sketch.path_of(folder), folder), (small, sketch.students_path(folder), sdxs.path_of(folder))):
            control.save_pretrained(place)
            (place / sketch.ABOUT).write_text(json.dumps({"teacher": fitted.weights(whose)}))
        own, whole = drawn(tiny_pipe, BOTH, asked), drawn(tiny_pipe, full.Knobs(), asked)
        sheet = torch.from_numpy(np.array(drawing.resize((128, 128), Image.Resampling.NEAREST)))[None]
        text = tiny_pipe.encode_prompt(asked.prompt, "cpu", 1, False)[0]
        with torch.no_grad():
            expected = students.one_step(network.following(unet, small, sheet), noise(tiny_pipe, asked), text, parts.scheduler().alphas_cumprod)
        assert torch.allclose(own.latents, expected, atol=1e-2 * float(expected.std()))
        (sketch.students_path(folder) / sketch.ABOUT).write_text(json.dumps({"teacher": "of another student"}))
        other = drawn(tiny_pipe, BOTH, asked)
        assert not torch.equal(other.latents, own.latents) and torch.equal(drawn(tiny_pipe, full.Knobs(), asked).latents, whole.latents)
        assert not torch.equal(other.latents, drawn(tiny_pipe, BOTH).latents)  # by what the model's own says to the stages that are left


def alike(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_previews_come_from_the_small_decoder_where_it_belongs_to_these_weights(tiny_pipe, home):
    student, latents = models.load_beside(sdxs.path_of(home)), torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    ready, own = sdxs.previewing(tiny_pipe), tiny_pipe.vae
    assert alike(ready.vae, student.vae) and ready.unet is tiny_pipe.unet and tiny_pipe.vae is own
    assert np.array_equal(pictures(ready, latents)[0], pictures(student, latents)[0])
    (sdxs.path_of(home) / sdxs.ABOUT).write_text('{"teacher": "other"}')
    assert sdxs.previewing(tiny_pipe) is tiny_pipe
    shutil.rmtree(sdxs.path_of(home))
    assert sdxs.previewing(tiny_pipe) is tiny_pipe


def test_previews_come_from_the_models_own_small_decoder_where_its_hashes_are_told(tiny_pipe, tmp_path):
    """Rows of the model and what Inside shows of their steps; without it, or when it is damaged, the student's again."""
    from folders import tiny_decoder

    from fastviz.ui import inside

    folder, own = tmp_path / "tiny", tiny_pipe.vae
    with at_home(tiny_pipe, tmp_path / "model"):
        student = models.load_beside(make_student(tiny_pipe, tmp_path / "model"))
        small = tiny_decoder().eval()
        small.save_pretrained(folder)
        assert alike(sdxs.previewing(tiny_pipe).vae, student.vae)  # nothing says whose latents it knows
        verified.write_hashes(tmp_path)
        ready, latents = sdxs.previewing(tiny_pipe), torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        assert sdxs.previewing(tiny_pipe).vae is ready.vae and ready.unet is tiny_pipe.unet and tiny_pipe.vae is own
        with torch.no_grad():
            expected = small.decode(latents / small.config.scaling_factor).sample
            assert torch.allclose(ready.vae.decode(latents.to(ready.vae.dtype) / ready.vae.config.scaling_factor).sample.cpu().float(), expected, atol=1e-2)
        ready.vae = small
        shown = inside.estimates(tiny_pipe, {"estimate": {(step, ""): latents[step].numpy() for step in range(2)}}, 2)
        assert all(np.array_equal(shown[i], np.asarray(picture.convert("RGBA"))) for i, picture in enumerate(pictures(ready, latents)))
        weights = next(folder.glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-1])
        assert alike(sdxs.previewing(tiny_pipe).vae, student.vae)


def test_the_embedded_models_previews_have_its_small_decoder():
    pipe = models.load("stickers")
    assert type(sdxs.previewing(pipe).vae).__name__ == "AutoencoderTiny"


def test_an_exchanged_student_is_read_again(home):
    folder = sdxs.path_of(home)
    first = models.load_beside(folder)
    assert models.load_beside(folder) is first
    first.unet.save_pretrained(folder / "unet")
    assert models.load_beside(folder) is not first
