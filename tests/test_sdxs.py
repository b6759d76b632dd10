"""The one-step student's training: its networks, every loss against closed forms, and the whole chain at tiny size."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from skimage.metrics import structural_similarity

from fastviz import verified
from fastviz.stickers import loop, parts
from fastviz.stickers.sdxs import chain, decoder, distil, evaluate, export, network, pairs, score, warmup

ALPHAS = parts.scheduler().alphas_cumprod


@pytest.fixture(scope="module")
def guide(tiny_pipe):
    """The tiny pipeline as the teacher."""
    return SimpleNamespace(unet=tiny_pipe.unet, text=tiny_pipe.text_encoder, tokenizer=tiny_pipe.tokenizer)


@pytest.fixture
def workshop(guide, tiny_pipe, tmp_path, monkeypatch):
    """An empty folder to train in, with the tiny pipeline as what is committed."""
    monkeypatch.setattr(loop, "WORK", tmp_path)
    monkeypatch.setattr(chain, "committed_teacher", lambda minutes=None: copy.deepcopy(guide))
    monkeypatch.setattr(chain, "decoder_teacher", lambda: copy.deepcopy(tiny_pipe.vae))
    monkeypatch.setattr(chain, "digest", lambda: "0123456789abcdef")
    return tmp_path


def words(guide, texts):
    return chain.embedded(guide, chain.tokens_of(guide, texts))


# The networks

def test_the_student_has_at_most_two_fifths_of_the_teachers_parameters_and_none_of_the_dropped_parts():
    teacher = parts.unet()
    student = network.student_of(teacher)
    assert network.parameters(student) <= 0.4 * network.parameters(teacher)
    assert student.mid_block is None and len(student.down_blocks) == len(student.up_blocks) == 2
    finest = (student.down_blocks[0], student.up_blocks[-1])
    assert not any(hasattr(module, "attn1") for block in finest for module in block.modules())
    assert any(hasattr(module, "attn1") for module in student.down_blocks[1].modules())


def test_the_student_begins_with_the_teachers_weights():
    torch.manual_seed(0)
    teacher = parts.unet()
    student = network.small_unet(teacher)
    partly = network.inherit(student, teacher)
    given = teacher.state_dict()
    assert {name.rpartition(".")[0] for name in partly} == {f"up_blocks.0.resnets.0.{part}" for part in ("norm1", "conv1", "conv_shortcut")}
    for name, weight in student.state_dict().items():
        source = given[network.theirs(name)]
        if name not in partly:
            assert torch.equal(weight, source), name
        elif weight.ndim == 4:  # (out, in, 3, 3): what reads the skip connection, and nothing else
            assert torch.equal(weight[:, -128:], source[:, -128:]) and not weight[:, :-128].any(), name
        else:
            assert torch.equal(weight[-128:], source[-128:]), name


def test_a_student_is_read_back_from_its_folder(tmp_path):
    student = network.student_of(parts.unet())
    student.save_pretrained(tmp_path)
    back = UNet2DConditionModel.from_pretrained(tmp_path)
    assert {name: weight.shape for name, weight in back.state_dict().items()} == {name: weight.shape for name, weight in student.state_dict().items()}


def test_inside_is_what_the_network_computes(guide):
    torch.manual_seed(0)
    x, t, text = torch.randn(2, 4, 16, 16), torch.tensor([3, 900]), words(guide, ["a cat", "a dog"])
    for unet in (guide.unet, network.student_of(guide.unet)):
        found, downs, ups = network.inside(unet, x, t, text)
        assert torch.equal(found, unet(x, t, text).sample)
        assert len(ups) == len(unet.up_blocks) and len(downs) == 2 * len(unet.down_blocks)


def test_noising_is_undone_by_the_true_noise():
    torch.manual_seed(0)
    clean, noise, alpha = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), ALPHAS[torch.tensor([0, 400, 999])]
    assert torch.allclose(network.denoised(network.noised(clean, noise, alpha), noise, alpha), clean, atol=1e-4)


def test_one_step_is_what_diffusers_draws_in_one_step(guide, tiny_pipe):
    unet = network.student_of(guide.unet)
    pipe = export.pipeline(guide, unet, tiny_pipe.vae)
    noise = pairs.noise_of([5], 16)
    drawn = pipe("a cat", num_inference_steps=1, guidance_scale=1.0, latents=noise, height=128, width=128, output_type="latent").images
    with torch.no_grad():
        ours = network.one_step(unet, noise, words(guide, ["a cat"]), ALPHAS)
    assert int(pipe.scheduler.timesteps[0]) == network.LAST and torch.allclose(drawn, ours, atol=1e-4)
    assert ours.std() > 1  # the step is there: sigma is 14.6


def test_the_small_decoder_reads_the_teachers_latents_with_less_work(tiny_pipe):
    vae = network.small_vae(tiny_pipe.vae)
    for name, weight in tiny_pipe.vae.encoder.state_dict().items():
        assert torch.equal(vae.encoder.state_dict()[name], weight)
    assert vae.decode(torch.zeros(1, 4, 4, 4)).sample.shape == (1, 3, 32, 32)
    shipped = chain.decoder_teacher()
    assert network.parameters(network.small_vae(shipped).decoder) < 0.25 * network.parameters(shipped.decoder)


# Distillation

def test_distillation_is_the_relative_error_of_every_stage_that_is_left():
    rng = np.random.default_rng(0)
    outs, downs, ups = rng.normal(size=(2, 3)), rng.normal(size=(2, 2, 5)), rng.normal(size=(2, 3, 4))
    ours, theirs = ((torch.tensor(outs[i]), list(torch.tensor(downs[i])), list(torch.tensor(ups[i]))) for i in (0, 1))
    ours = (ours[0], ours[1], ours[2][1:])  # the teacher has one up stage more, its first

    def error(a, b):
        return ((a - b) ** 2).sum() / (b ** 2).sum()

    output, features = distil.distillation(ours, theirs)
    assert float(output) == pytest.approx(error(outs[0], outs[1]), rel=1e-5)
    wanted = np.mean([error(*downs[:, 0]), error(*downs[:, 1]), error(*ups[:, 1]), error(*ups[:, 2])])
    assert float(features) == pytest.approx(wanted, rel=1e-5)


def test_stages_that_are_compared_have_the_same_shape(guide):
    torch.manual_seed(0)
    loss = distil.loss_of(guide, ALPHAS)
    student = network.student_of(guide.unet)
    value, told = loss(student, (torch.randn(2, 4, 16, 16), chain.tokens_of(guide, ["a cat", "a dog"])))
    value.backward()
    assert 0 < told["output"].item() < 2 * distil.MOST and all(weight.grad is not None for name, weight in student.named_parameters())
    assert all(weight.grad is None for weight in guide.unet.parameters())


# Pairs

def test_a_pair_is_what_diffusers_draws_with_guidance(guide, tiny_pipe, monkeypatch):
    monkeypatch.setattr(loop, "PRECISION", torch.float32)
    noise = pairs.noise_of([7], 16)
    found = pairs.finished(guide, noise, words(guide, ["a cat"]), 4, 3.0)
    pipe = StableDiffusionPipeline(**{**tiny_pipe.components, "scheduler": DPMSolverMultistepScheduler.from_config(tiny_pipe.scheduler.config)},
                                   requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe("a cat", num_inference_steps=4, guidance_scale=3.0, latents=noise, height=128, width=128, output_type="latent").images
    assert torch.allclose(found, drawn, atol=1e-4)


def test_pairs_are_continued_and_belong_to_their_steps(workshop):
    assert pairs.make(1, 2, 2, 3.0, most=2) == 2
    first = pairs.saved()["latents"]
    assert pairs.make(1, 2, 2, 3.0, most=3) == 3
    pairs.path().unlink()
    pairs.make(1, 3, 2, 3.0, most=3)  # made again from the seeds
    again = pairs.saved()["latents"]
    assert torch.allclose(again[:2].float(), first.float(), atol=1e-2) and not torch.allclose(again[2], again[1], atol=1e-2)
    with pytest.raises(chain.NotYet, match="2 steps and guidance 3"):
        pairs.make(1, 2, 4, 3.0, most=4)


def test_a_drawn_pair_has_its_own_noise_and_caption(workshop, guide):
    pairs.save(torch.arange(5.0).half().view(5, 1, 1, 1).expand(5, 4, 16, 16), 2, 3.0)
    noise, tokens, latents = pairs.Pairs(guide).draw(20)
    captions = chain.tokens_of(guide, chain.captions(range(pairs.SEED, pairs.SEED + 5)))
    for one, caption, row in zip(noise, tokens, latents[:, 0, 0, 0].long()):
        assert torch.equal(one, pairs.noise_of([pairs.SEED + int(row)], 16)[0]) and torch.equal(caption, captions[row])


# Feature matching

def test_similarity_is_scikit_images():
    rng = np.random.default_rng(1)
    a, b = rng.normal(2, 3, (2, 1, 3, 12, 12)).astype(np.float32)
    found = float(warmup.similarity(torch.tensor(a), torch.tensor(b)))
    told = [structural_similarity(a[0, c], b[0, c], win_size=7, data_range=4 * b[0, c].std(ddof=1), use_sample_covariance=False)
            for c in range(3)]
    assert found == pytest.approx(np.mean(told), abs=1e-4)
    assert float(warmup.similarity(torch.tensor(b), torch.tensor(b))) == pytest.approx(1, abs=1e-5)


def test_pseudo_huber():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 3, 5)).astype(np.float32)
    told = (np.sqrt((a - b) ** 2 + 0.01) - 0.1).mean()
    assert float(warmup.pseudo_huber(torch.tensor(a), torch.tensor(b))) == pytest.approx(told, rel=1e-4)


def test_matching_prefers_the_picture_itself_to_its_blur(guide):
    torch.manual_seed(0)
    clean, text = torch.randn(2, 4, 16, 16), words(guide, ["a cat", "a dog"])
    blurred = torch.nn.functional.avg_pool2d(clean, 3, 1, 1).requires_grad_()
    value = warmup.matching(guide.unet, blurred, clean, text, ALPHAS)
    value.backward()
    assert warmup.matching(guide.unet, clean, clean, text, ALPHAS).item() < 1e-4 < 0.02 < value.item()
    assert blurred.grad.abs().max() > 0 and all(weight.grad is None for weight in guide.unet.parameters())


def test_features_are_one_of_each_stage(guide):
    found = warmup.features(guide.unet, torch.randn(1, 4, 16, 16), torch.randn(1, 4, 16, 16), torch.tensor([50]), words(guide, ["a cat"]), ALPHAS)
    assert [each.shape[-1] for each in found] == [16, 8, 4]


def test_most_batches_start_from_pure_noise():
    torch.manual_seed(0)
    noise, latents, pure = torch.randn(4, 4, 4, 4), torch.randn(4, 4, 4, 4), 0
    for _ in range(400):
        start, t = warmup.starts(noise, latents, ALPHAS)
        pure += bool((t == network.LAST).all())
        if (t == network.LAST).all():
            assert torch.equal(start, (1 - ALPHAS[999]).sqrt() * noise)
        else:
            assert torch.allclose(start, ALPHAS[t].sqrt()[:, None, None, None] * latents + (1 - ALPHAS[t]).sqrt()[:, None, None, None] * noise)
    assert 0.68 < pure / 400 < 0.82


# Score distillation

def test_the_gradient_is_the_difference_of_the_estimates_over_the_teachers_distance():
    rng = np.random.default_rng(3)
    drawn, online, teacher = rng.normal(size=(3, 2, 4, 3, 3))
    told = (online - teacher) / np.abs(drawn - teacher).mean((1, 2, 3), keepdims=True)
    x = torch.tensor(drawn, requires_grad=True)
    found = score.direction(x.detach(), torch.tensor(online), torch.tensor(teacher))
    assert np.allclose(found, told)
    score.towards(x, found).backward()
    assert np.allclose(x.grad, told / told.size)


def gaussian(mean, spread):
    """The best estimate of the clean value when clean values are normal: (noisy, t) -> estimate."""
    def estimate(noisy, t):
        a = ALPHAS[t].view(-1, 1, 1, 1)
        return mean + a.sqrt() * spread ** 2 / (a * spread ** 2 + 1 - a) * (noisy - a.sqrt() * mean)
    return estimate


def test_score_distillation_moves_the_students_distribution_to_the_teachers():
    """Both normal, so both scores are known: the student draws b + a z, and a and b have to become the teacher's."""
    torch.manual_seed(0)
    a, b = torch.nn.Parameter(torch.tensor(1.5)), torch.nn.Parameter(torch.tensor(-1.0))
    optimizer = torch.optim.Adam([a, b], lr=0.03)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / 400)
        drawn = b + a * torch.randn(32, 1, 4, 4)
        t = score.timesteps(32, 0.98, 1000, "cpu")
        loss = score.distillation(drawn, t, ALPHAS, gaussian(b.detach(), a.detach()), gaussian(0.7, 0.4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert b.item() == pytest.approx(0.7, abs=0.06) and abs(a.item()) == pytest.approx(0.4, abs=0.06)


def test_the_online_network_follows_the_student_and_the_student_stays(guide):
    torch.manual_seed(0)
    pair = score.Pair(network.student_of(guide.unet), copy.deepcopy(guide.unet).requires_grad_(True))
    before = {name: weight.clone() for name, weight in pair.student.state_dict().items()}
    optimizer = torch.optim.AdamW(pair.online.parameters(), lr=1e-2)
    text, noise, errors = words(guide, ["a cat"]).expand(2, -1, -1), torch.randn(2, 4, 8, 8), []
    for _ in range(10):
        torch.manual_seed(1)  # the same noise and timesteps every time
        errors.append(float(score.follow(pair, optimizer, noise, text, ALPHAS)))
    assert errors[-1] < 0.8 * errors[0]
    assert all(torch.equal(weight, before[name]) for name, weight in pair.student.state_dict().items())


def test_the_student_is_updated_and_its_mixture_moves(guide):
    torch.manual_seed(0)
    pair = score.Pair(network.student_of(guide.unet), copy.deepcopy(guide.unet).requires_grad_(True))
    online = torch.optim.AdamW(pair.online.parameters(), lr=1e-4)
    loss = score.loss_of(guide, ALPHAS, online, 3.0, updates=10)
    tokens = chain.tokens_of(guide, ["a cat", "a dog"])
    batch = torch.randn(2, 4, 16, 16), tokens, torch.randn(2, 4, 16, 16), tokens.repeat(score.ONLINE + 1, 1)
    value, told = loss(pair, batch)
    value.backward()
    assert value.item() == pytest.approx((told["score"] + 1.0 * told["match"]).item(), rel=1e-5)
    assert pair.updates == 1 and all(weight.grad is None for weight in pair.online.parameters())
    assert sum(float(weight.grad.abs().sum()) for weight in pair.student.parameters()) > 0
    pair.updates.fill_(10)
    value, told = loss(pair, batch)
    assert value.item() == pytest.approx((told["score"] + 0.25 * told["match"]).item(), rel=1e-5)
    assert score.between(score.ALPHA, 0) == 0.7 and score.between(score.ALPHA, 2.0) == pytest.approx(0.98)


def test_the_online_networks_updates_count_at_once_under_bfloat16(guide, monkeypatch):
    """torch's cache of cast weights would hide them until autocast is left."""
    monkeypatch.setattr(loop, "PRECISION", torch.bfloat16)
    torch.manual_seed(0)
    pair = score.Pair(network.student_of(guide.unet), copy.deepcopy(guide.unet).requires_grad_(True))
    optimizer = torch.optim.AdamW(pair.online.parameters(), lr=1e-2)
    text, noise, t = words(guide, ["a cat"]).expand(2, -1, -1), torch.randn(2, 4, 8, 8), torch.tensor([300, 500])
    with loop.autocast():
        score.follow(pair, optimizer, noise, text, ALPHAS)
        inside = pair.online(noise, t, text).sample.detach()
    with loop.autocast():
        assert torch.equal(pair.online(noise, t, text).sample, inside)


def test_the_student_computes_in_single_precision_whatever_the_rest_does(guide):
    text, noise = words(guide, ["a cat"]), torch.randn(1, 4, 8, 8)
    unet = network.student_of(guide.unet)
    with torch.no_grad():
        plain = network.one_step(unet, noise, text, ALPHAS)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(network.one_step(unet, noise, text, ALPHAS), plain)


def test_captions_of_score_distillation_are_fresh_and_half_of_what_is_judged_comes_from_pairs(guide, workshop):
    seen = []

    class Some:
        draw = staticmethod(lambda size: ("noise", "tokens", "latents"))

    for _, batch in zip(range(2), score.batches(Some, 3, lambda texts: seen.append(texts) or len(texts))):
        assert batch == ("noise", "tokens", "latents", 3 * (score.ONLINE + 1))
    assert seen[0] != seen[1] and all(text.split()[0] for text in seen[0])


def test_a_report_reads_what_one_step_draws(guide, workshop):
    found = warmup.recalled(guide, 2)(network.student_of(guide.unet))
    assert set(found) == {"objects", "background"} and all(0 <= value <= 1 for value in found.values())


def test_a_further_teachers_student_goes_on_from_the_earlier_ones(workshop, guide, monkeypatch):
    assert chain.earlier("distil") is None
    student = network.student_of(guide.unet).state_dict()
    leave("distil", {name: weight + 1 for name, weight in student.items()})
    assert chain.earlier("distil") is None  # its own
    monkeypatch.setattr(chain, "digest", lambda: "fedcba9876543210")
    assert all(torch.equal(weight, student[name] + 1) for name, weight in chain.earlier("distil").items())
    seen = []
    monkeypatch.setattr(distil, "train", lambda name, model, *args, **told: seen.append(model))
    distil.fit(0.01, 2, 1e-3, fresh=0, room=8)
    assert torch.equal(seen[0].conv_in.weight.contiguous(), student["conv_in.weight"] + 1)


def test_where_noise_is_highest_the_outputs_error_counts_most():
    ours, theirs = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    assert distil.relative(ours, theirs) == 0.5 and distil.relative(ours, theirs, torch.tensor([1.0, 8.0])) == 4


def test_score_timesteps_leave_out_both_ends():
    t = score.timesteps(4000, 0.7, 1000, "cpu")
    assert 20 <= t.min() < 30 and 680 < t.max() < 700


# The chain

def test_a_stage_that_needs_another_one_names_it(workshop, guide):
    for stage in chain.STAGES:
        with pytest.raises(chain.NotYet, match=f"fastviz.stickers {stage}"):
            chain.student(guide, stage)
    with pytest.raises(chain.NotYet, match="student-decoder"):
        decoder.trained()
    with pytest.raises(chain.NotYet, match="stickers pairs"):
        pairs.Pairs(guide)


def test_the_whole_chain_ends_in_a_folder_that_draws_in_one_step(workshop, guide):
    moment = 0.02  # minutes
    distil.fit(moment, 2, 1e-3, fresh=0, room=8)
    first = loop.checkpoint(chain.name("distil"))
    distil.fit(moment, 2, 1e-3, fresh=0, room=8)
    assert loop.checkpoint(chain.name("distil"))["step"] > first["step"] > 0
    decoder.fit(moment, 4, 1e-3)
    pairs.make(1, 2, 2, 3.0, most=4)
    warmup.fit(moment, 2, 1e-3)
    score.fit(moment, 2, 1e-4, updates=50)
    done = loop.checkpoint(chain.name("score"))
    score.fit(moment, 2, 1e-4, updates=50)
    again = loop.checkpoint(chain.name("score"))
    assert again["model"]["updates"] == again["step"] > done["step"] > 0

    (workshop / "hashes.json").write_text(json.dumps({"model/unet/config.json": "kept"}))
    assert export.export(workshop) == "score"
    folder = workshop / "sdxs"
    assert verified.check(folder) == "" and json.loads((workshop / "hashes.json").read_text())["model/unet/config.json"] == "kept"
    told = json.loads((folder / export.ABOUT).read_text())
    assert told["teacher"] == chain.digest() and told["pairs"] == {"count": 4, "steps": 2, "guidance": 3.0}
    assert set(told["stages"]) == {"decoder", "distil", "warmup", "score"} and told["stages"]["score"]["step"] == again["step"]
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    noise = pairs.noise_of([1], 16)
    drawn = pipe("a cat", num_inference_steps=1, guidance_scale=1.0, latents=noise, height=128, width=128, output_type="latent").images
    with torch.no_grad():
        ours = network.one_step(chain.student(guide, "score"), noise, words(guide, ["a cat"]), ALPHAS)
    assert torch.allclose(drawn, ours, atol=0.02 * float(ours.std()))


def leave(stage, weights):
    """A checkpoint as a stage leaves it."""
    torch.save({"average": weights, "step": 3, "hours": 0.1, "log": [{"device": "test"}]}, loop.WORK / f"{chain.name(stage)}.pt")


def test_an_evaluation_tells_every_way_and_draws_nothing_twice(workshop, guide, tiny_pipe, monkeypatch, capsys):
    torch.manual_seed(0)
    student = network.student_of(guide.unet).state_dict()
    leave("decoder", network.small_vae(tiny_pipe.vae).decoder.state_dict())
    leave("warmup", student)
    leave("score", {f"student.{name}": weight for name, weight in student.items()})
    for name, value in (("FULL", 3), ("FEW", 2), ("SEEDS", 2), ("SPREAD", 2), ("SHOWN", 2), ("RESULT", workshop / "bench/student.json")):
        monkeypatch.setattr(evaluate, name, value)
    evaluate.main(1, 1)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = told["rows"]
    assert list(rows) == ["Teacher, 3 steps", "Teacher, 2 steps", "Teacher, 1 step", "Student, warm-up only", "Student, full recipe"]
    assert told == json.loads((workshop / "bench/student.json").read_text()) and told["weights"] == chain.digest()
    teacher, *_, student = rows.values()
    assert teacher["lpips, one"] == 0 < student["lpips, two"]
    assert student["parameters"] < teacher["parameters"] and student["gflop"] < teacher["gflop"]
    assert rows["Student, warm-up only"] == student and told["seconds"]["ratio"] > 0  # the same weights
    value, bar, good = told["accepted"]["parameters kept"]
    assert value == pytest.approx(student["parameters"] / teacher["parameters"], abs=1e-4) and good == (value <= bar)
    for name in ("networks", "decoders", "rows"):
        assert (workshop / f"student-{name}.png").stat().st_size > 5000
    drawn = {path: path.stat().st_mtime_ns for path in workshop.rglob("student-drawn-*/*/*.png")}
    assert len(drawn) == 5 * (2 + 2 * 2)
    row, first = ("teacher-2", tiny_pipe, 2, 3.0), evaluate.FIRST[1]
    text = evaluate.evaluate.prompts(2, objects=1)[0].caption
    gone = evaluate.path_of(row, text, first)
    gone.unlink()
    evaluate.drawn(row, [text, "a dog"], first)  # more prompts than before: what was drawn stays that prompt's picture
    assert [path for path in drawn if path.stat().st_mtime_ns != drawn[path]] == [gone]


def test_a_student_is_accepted_by_four_figures():
    teacher = {"one": 0.98, "two": 0.92, "diversity": 0.5, "parameters": 100}
    good = evaluate.accepted(teacher, {"one": 0.94, "two": 0.88, "diversity": 0.4, "parameters": 40}, 30)
    assert good == {"recall lost": (0.04, 0.05, True), "speed": (30, 25, True), "diversity kept": (0.8, 0.7, True),
                    "parameters kept": (0.4, 0.4, True)}
    bad = evaluate.accepted(teacher, {"one": 0.9, "two": 0.8, "diversity": 0.3, "parameters": 50}, 20)
    assert not any(reached for _, _, reached in bad.values())
