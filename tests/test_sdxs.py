"""The one-step student's training: its networks, every loss against closed forms, and the whole chain at tiny size."""

import copy
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from skimage.metrics import structural_similarity

from fastviz import fitted, verified
from fastviz.models import MODELS
from fastviz.stickers import autoencoder, card, loop, parts
from fastviz.stickers.sdxs import UNETS, chain, critic, decoder, distil, evaluate, export, network, pairs, reader, refine, score, warmup
from fastviz.stickers.words import OBJECTS
from fastviz.stickers.words import ASIDE, OBJECTS

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
    for name in ("small_autoencoder", "own_autoencoder"):
        monkeypatch.setattr(chain, name, lambda: copy.deepcopy(tiny_pipe.vae))
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
    noise, text, t = pairs.noise_of([5], 16), words(guide, ["a cat"]), torch.tensor([network.LAST])
    with torch.no_grad():
        ours = network.one_step(unet, noise, text, ALPHAS)
        noisy = (1 - ALPHAS[999]).sqrt() * noise
        distilled = network.denoised(noisy, unet(noisy, t, text).sample, ALPHAS[t])  # which answers as the teacher
    assert distilled.std() > 5 > ours.std() > 0.1  # an error counts 14.6 times there
    for stage, wanted in ((None, ours), ("score", ours), ("distil", distilled)):
        pipe = export.pipeline(guide, unet, tiny_pipe.vae, stage)
        drawn = pipe("a cat", num_inference_steps=1, guidance_scale=1.0, latents=noise, height=128, width=128, output_type="latent").images
        assert int(pipe.scheduler.timesteps[0]) == network.LAST and torch.allclose(drawn, wanted, atol=1e-4)


def test_a_warm_up_begins_with_no_velocity(guide, workshop, monkeypatch):
    seen = []
    monkeypatch.setattr(warmup, "train", lambda name, student, *args, **told: seen.append(student))
    pairs.save(torch.zeros(2, 4, 16, 16).half(), 2, 3.0)
    leave("distil", network.student_of(guide.unet).state_dict())
    warmup.fit(0.01, 2, 1e-3, fresh=0, room=8)
    noisy, t = torch.randn(2, 4, 16, 16), torch.tensor([10, 999])
    with torch.no_grad():
        found = network.estimated(seen[0], noisy, t, words(guide, ["a cat", "a dog"]), ALPHAS)
    assert torch.allclose(found, ALPHAS[t].sqrt().view(-1, 1, 1, 1) * noisy) and network.student_of(guide.unet).conv_out.weight.any()


def test_the_small_decoder_reads_the_teachers_latents_with_less_work(tiny_pipe):
    vae = network.small_vae(tiny_pipe.vae)
    for name, weight in tiny_pipe.vae.encoder.state_dict().items():
        assert torch.equal(vae.encoder.state_dict()[name], weight)
    assert vae.decode(torch.zeros(1, 4, 4, 4)).sample.shape == (1, 3, 32, 32)
    shipped = chain.small_autoencoder()
    assert network.parameters(network.small_vae(shipped).decoder) < 0.25 * network.parameters(shipped.decoder)


def test_the_small_decoder_learns_from_the_one_that_the_model_draws_with(monkeypatch):
    torch.manual_seed(0)
    reference, small = autoencoder.kl(), autoencoder.tiny()
    monkeypatch.setattr(chain, "shipped", lambda folder, part="": (small if folder == "tiny" else reference).state_dict())
    latents = torch.randn(1, 4, 4, 4)
    assert torch.equal(chain.own_autoencoder().decode(latents).sample, reference.eval().decode(latents).sample)
    assert torch.equal(chain.small_autoencoder().decode(latents).sample, small.eval().decode(latents).sample)
    monkeypatch.setattr(chain, "shipped", lambda folder, part="": None if folder == "tiny" else small.state_dict())
    assert torch.equal(chain.own_autoencoder().decode(latents).sample, small.decode(latents).sample)


def test_the_small_decoder_is_compared_at_three_sizes_and_by_its_slopes():
    torch.manual_seed(0)
    target = torch.rand(2, 3, 16, 16)
    assert float(decoder.distance(target + 0.2, target)) == pytest.approx(0.2 * (1 + 1 + 0.5), rel=1e-4)  # at 1/8, at 1, half at 1/4
    board = ((torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1).expand(2, 3, 16, 16)  # gone where it is made smaller
    assert float(decoder.distance(target + board, target)) == pytest.approx(1 + 0.5 * (2 + 2), rel=1e-4)
    halves = torch.tensor([1.0, -1.0]).repeat_interleave(8).expand(2, 3, 16, 16)  # one slope of 2 in 15 across, none down
    assert float(decoder.distance(target + halves, target)) == pytest.approx(1 + 1 + 0.5 + 0.5 * 2 / 15, rel=1e-4)


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


def test_no_timestep_is_beyond_the_last(guide, monkeypatch):
    """(7 + 0.99999994) / 8 rounds to 1, of which the timestep would be 1000."""
    torch.manual_seed(0)
    batch = torch.randn(8, 4, 8, 8), chain.tokens_of(guide, ["a cat"] * 8)
    monkeypatch.setattr(torch, "rand", lambda *size, **told: torch.full(size, 1 - 2 ** -24))
    assert distil.loss_of(guide, ALPHAS)(network.student_of(guide.unet), batch)[0].isfinite()


def test_distillation_is_reported_on_held_out_scenes(guide, tiny_pipe):
    report, asked = distil.heldout(guide, tiny_pipe.vae.encoder), []

    def nothing(noisy, t, text):
        asked.append(t)
        return SimpleNamespace(sample=torch.zeros_like(noisy))

    assert report(guide.unet) == {"output, all": 0, "output, noisy": 0} and report(nothing) == {"output, all": 1, "output, noisy": 1}
    everywhere, noisy = torch.cat(asked).split(distil.HELD_OUT)
    assert (everywhere.min(), everywhere.max(), noisy.min(), noisy.max()) == (0, 999, 800, 999)


def test_the_store_is_filled_before_training_begins(guide):
    seen = []
    next(distil.scenes(guide, lambda pictures: seen.append(len(pictures)) or torch.zeros(len(pictures), 4, 32, 32), 2, 0, 100, 5))
    assert 20 * 2 <= sum(seen) < 20 * 2 + 16


# Pairs

def test_captions_name_one_object_or_two_alike_often_and_some_tell_a_side():
    captions = chain.captions(range(600))
    assert captions == chain.captions(range(600))
    counts = [len(set(re.findall("[a-z]+", caption)) & set(OBJECTS)) for caption in captions]
    assert set(counts) == {1, 2} and 0.43 < counts.count(2) / 600 < 0.57
    sides = [phrase.removeprefix("{}") for phrases in ASIDE.values() for phrase in phrases]
    aside = [any(side in caption for side in sides) for caption, count in zip(captions, counts) if count == 1]
    assert 0.2 < sum(aside) / len(aside) < 0.4


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


def test_similarity_far_from_zero_is_that_of_the_same_maps_near_it():
    """The variance is a difference of mean squares, in single precision 1000 times as large as itself here."""
    rng = np.random.default_rng(4)
    a, b = rng.normal(3000, 1, (2, 1, 3, 12, 12))
    told = [structural_similarity(a[0, c], b[0, c], win_size=7, data_range=4 * b[0, c].std(ddof=1), use_sample_covariance=False) for c in range(3)]
    found = float(warmup.similarity(torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32)))
    assert found == pytest.approx(np.mean(told), abs=1e-3)


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


def test_the_warm_up_sums_its_features_over_the_stages_beside_a_tenth_of_the_distance(guide):
    """Both pictures are seen with the same noise of one small timestep; pairs and scenes are drawn side by side."""
    torch.manual_seed(0)
    calls, asked = [], []

    def downwards(unet, x, t, text):
        calls.append((x, t))
        return network.downwards(unet, x, t, text)

    student, noise, latents, scenes = network.student_of(guide.unet), *torch.randn(3, 2, 4, 16, 16)
    student.register_forward_hook(lambda module, args, answer: asked.append((args, answer.sample)))
    tokens = chain.tokens_of(guide, ["a cat", "a dog", "a bus", "a tree"])
    value, told = warmup.loss_of(guide, ALPHAS, downwards)(student, (noise, tokens[:2], latents, tokens[2:], scenes))
    ((start, at, text), velocity), = asked
    (wanted, t), (ours, again) = calls
    assert t.unique().numel() == 1 and torch.equal(t, again) and 20 <= t[0] < 200
    a, b, whole = ALPHAS[t[0]], ALPHAS[at].view(-1, 1, 1, 1), torch.cat([latents, scenes])
    assert torch.equal(text, chain.embedded(guide, tokens)) and (at[:2] == 999).all()
    drawn = b.sqrt() * start - (1 - b).sqrt() * velocity
    assert torch.allclose(ours - a.sqrt() * drawn, wanted - a.sqrt() * whole, atol=1e-4)
    stages = [[network.downwards(guide.unet, x, t, text)[1][i] for i in (1, 3, 5)] for x in (ours, wanted)]
    match = sum(1 - warmup.similarity(*pair).mean() for pair in zip(*stages))
    assert told["match"].item() == pytest.approx(match.item(), rel=1e-4) and told["match"] > 1  # of three stages
    assert value.item() == pytest.approx(match.item() + 0.1 * warmup.pseudo_huber(drawn, whole).item(), rel=1e-4)


def test_features_are_compared_in_a_window_where_the_two_are_furthest_apart(guide):
    torch.manual_seed(0)
    rows = torch.arange(32.0).expand(1, 1, 32, 32)
    seen = [warmup.windows(rows, rows + 1) for _ in range(200)]  # as far apart everywhere: anywhere
    assert all(one.shape == (1, 1, 16, 16) and torch.equal(other, one + 1) for one, other in seen)
    assert {int(one[0, 0, 0, 0]) for one, _ in seen} == set(range(17))
    apart = torch.zeros(2, 1, 32, 32)
    apart[0, :, 2:6, 3:7] = apart[1, :, 25:29, 28:32] = 1  # each picture of a batch has a window of its own
    found = [warmup.windows(apart, torch.zeros_like(apart)) for _ in range(100)]
    held = torch.stack([one.sum((1, 2, 3)) for one, _ in found])
    assert (held > 0).all() and (held.mean(0) > 12).all() and not any(other.any() for _, other in found)  # 16 is all of it
    assert warmup.windows(apart[..., :8, :8], apart[..., :8, :8])[0].shape == (2, 1, 8, 8)  # smaller pictures: whole
    drawn, latents, calls = torch.randn(2, 4, 32, 32, requires_grad=True), torch.zeros(2, 4, 32, 32), []

    def downwards(unet, x, t, text):
        calls.append(x)
        return network.downwards(unet, x, t, text)

    _, told = warmup.paired(guide.unet, drawn, latents, words(guide, ["a cat", "a dog"]), ALPHAS, downwards)
    told["match"].backward()
    assert [each.shape[-1] for each in calls] == [16, 16]
    assert (drawn.grad != 0).sum() <= drawn.numel() / 4 and told["huber"].item() == pytest.approx(warmup.pseudo_huber(drawn, latents).item())


def test_pairs_start_from_pure_noise_and_scenes_from_much_of_it():
    torch.manual_seed(0)
    noise, scenes = torch.randn(3, 4, 4, 4), 5 + torch.randn(400, 4, 4, 4)
    start, t = warmup.starts(noise, scenes, ALPHAS)
    assert torch.equal(start[:3], (1 - ALPHAS[999]).sqrt() * noise) and (t[:3] == 999).all()
    assert 500 <= t[3:].min() < 520 and 980 < t[3:].max() < 999
    left = start[3:] - ALPHAS[t[3:]].sqrt().view(-1, 1, 1, 1) * scenes
    assert torch.allclose(left.flatten(1).std(1), (1 - ALPHAS[t[3:]]).sqrt(), atol=0.3) and abs(left.mean()) < 0.05


def test_half_of_what_warms_up_are_real_scenes(guide, tiny_pipe, workshop):
    pairs.save(torch.zeros(4, 4, 16, 16).half(), 2, 3.0)
    endless = iter([(torch.ones(3, 4, 16, 16), torch.ones(3, 24))] * 2)
    for noise, tokens, latents, others, scenes in warmup.batches(pairs.Pairs(guide), endless, 6):
        assert len(noise) == len(tokens) == len(latents) == len(others) == len(scenes) == 3 and scenes.all() and not latents.any()


# Refinement

def solved(guide, x, text, times, guidance):
    """DPM-Solver++ 2M at `times` and then to the clean end: Lu et al., arXiv 2211.01095, algorithm 2, in its own letters."""
    empty, before, ends = words(guide, [""]).expand_as(text), None, [*times[1:], None]
    lam = [float((ALPHAS[t] / (1 - ALPHAS[t])).log() / 2) for t in times]
    for i, (t, end) in enumerate(zip(times, ends)):
        with torch.no_grad():
            at = torch.full((len(x),), t)
            without, given = (guide.unet(x, at, each).sample for each in (empty, text))
        clean = (x - (1 - ALPHAS[t]).sqrt() * (without + guidance * (given - without))) / ALPHAS[t].sqrt()
        if end is None:
            return clean
        step, d = lam[i + 1] - lam[i], clean
        if before is not None:
            r = (lam[i] - lam[i - 1]) / step
            d = (1 + 1 / (2 * r)) * clean - before / (2 * r)
        x = ((1 - ALPHAS[end]) / (1 - ALPHAS[t])).sqrt() * x - ALPHAS[end].sqrt() * (np.exp(-step) - 1) * d
        before = clean


def test_the_teacher_goes_on_from_the_students_picture_and_its_own_noise(guide, workshop, monkeypatch):
    monkeypatch.setattr(loop, "PRECISION", torch.float32)
    torch.manual_seed(0)
    student, noise, text = network.student_of(guide.unet), torch.randn(2, 4, 16, 16), words(guide, ["a cat", "a dog"])
    found = refine.refined(guide, student, noise, text, ALPHAS, 3.0)
    with torch.no_grad():
        drawn = network.one_step(student, noise, text, ALPHAS)
    begun = ALPHAS[200].sqrt() * drawn + (1 - ALPHAS[200]).sqrt() * noise
    assert torch.allclose(found, solved(guide, begun, text, (200, 100), 3.0), atol=1e-3) and (found - drawn).abs().mean() > 0.05


def test_targets_are_learnt_a_few_times_and_made_of_the_student_as_it_is_then(guide, tiny_pipe, workshop, monkeypatch):
    made = []

    def refined(guide, student, noise, text, alphas, guidance):
        made.extend(noise)
        return noise + len(made)

    monkeypatch.setattr(refine, "refined", refined)
    scenes = [(torch.zeros(4, 4, 8, 8), torch.zeros(4, 24, dtype=torch.long))] * 80
    seen = [batch for batch in refine.batches(guide, None, scenes, 6, 3.0)]
    assert all(len(noise) == len(tokens) == len(targets) == 12 and len(real) == len(others) == 4 for noise, tokens, targets, others, real in seen)
    assert len(made) == 12 + 79 * 2 and len(seen) * 12 / len(made) == pytest.approx(refine.AGAIN, rel=0.1)
    assert all(torch.equal(tokens[::2], tokens[1::2]) and not torch.equal(noise[::2], noise[1::2]) for noise, tokens, *_ in seen)
    ages = torch.cat([(targets - noise)[:, 0, 0, 0].max() - (targets - noise)[:, 0, 0, 0] for noise, _, targets, *_ in seen])
    assert refine.ROOM < ages.max() < 2 * refine.ROOM
    captions = torch.cat([tokens for _, tokens, *_ in seen])
    assert 70 < len(captions.unique(dim=0)) <= len(made) // 2
    noise, *_ = next(refine.batches(guide, None, scenes, 2 * refine.ROOM, 3.0))
    assert len(noise) == 4 * refine.ROOM  # as many as asked for, where more are than are kept otherwise


def test_a_critic_is_shown_two_real_scenes_of_one_caption(monkeypatch):
    asked = []
    monkeypatch.setattr(critic.teacher, "painted", lambda scenes, tokenizer: asked.append(scenes) or [torch.full((2, 3, 16, 16), len(asked))])
    seen = [next(made) for made in [critic.scenes(lambda pictures: pictures[:, :, ::8, ::8], 5, 3)] for _ in range(20)]
    assert all(pairs.shape == (5, 2, 3, 2, 2) and len(pairs.unique(dim=0)) == 5 for pairs in seen)
    assert len(asked) == critic.ROOM + 19 and all(one.caption == other.caption and one is not other for one, other in asked)
    assert len({one.caption for one, _ in asked}) > 0.9 * len(asked) < 1.1 * sum(one.stickers != other.stickers for one, other in asked)


def twins(count, same):
    """Pairs of latents of random noise; same: of one picture each."""
    pairs = torch.randn(count, 2, 4, 16, 16)
    return pairs[:, :1].expand_as(pairs) if same else pairs


def test_a_student_that_draws_one_picture_of_a_caption_is_found_out():
    torch.manual_seed(0)
    tells, wrong = critic.Critic(ALPHAS), []
    for _ in range(25):
        wrong.append(float(tells.learn(twins(8, same=True), twins(8, same=False))))
    assert 0.6 < wrong[0] < 0.9 and sum(wrong[-5:]) / 5 < 0.3
    tells.updates = critic.HEAD
    drawn = twins(8, same=True).clone().requires_grad_()
    told, _ = tells.loss(drawn, twins(8, same=False))
    before = [weight.clone() for weight in tells.network.parameters()]
    gradient, = torch.autograd.grad(told, drawn)
    assert told > 1 and (gradient[:, 0] - gradient[:, 1]).abs().mean() > gradient.mean(1).abs().mean()  # the two are to differ
    assert all(torch.equal(weight, was) and weight.grad is None for weight, was in zip(tells.network.parameters(), before))


def test_a_critic_that_has_hardly_learnt_is_not_listened_to(monkeypatch):
    monkeypatch.setattr(critic, "HEAD", 3)
    torch.manual_seed(0)
    tells = critic.Critic(ALPHAS)
    told = [float(tells.loss(twins(1, same=True), twins(2, same=False))[0]) for _ in range(critic.HEAD + 1)]
    assert told[:3] == [0, 0, 0] and told[3] > 0


def test_a_thing_that_lacks_what_its_target_has_is_found_out(monkeypatch):
    monkeypatch.setattr(critic, "STEADY", 10)  # it learns in fewer updates
    torch.manual_seed(0)
    reads = chain.frozen(reader.Reader())
    misses, before = critic.Comparer(reads, ALPHAS), [weight.clone() for weight in reads.parameters()]
    cat, dog = (OBJECTS.index(name) for name in ("cat", "dog"))
    asked = torch.nn.functional.one_hot(torch.tensor([cat, dog] * 4), len(OBJECTS))
    mark = torch.zeros(4, 16, 16)
    mark[1, 6:9, 6:9] = 2  # of cats alone

    def both():
        drawn = torch.randn(8, 4, 16, 16)
        return drawn, drawn + mark * asked[:, cat, None, None, None]

    ours, theirs = misses.noisy(*both())
    assert torch.allclose((theirs - ours)[1::2], torch.zeros(1)) and (theirs - ours)[::2].abs().max() > 1  # the noise is the same
    assert all(torch.equal(weight, was) for weight, was in zip(misses.network.parameters(), before))
    wrong = [float(misses.learn(*misses.noisy(*both()), asked)) for _ in range(30)]
    assert wrong[0] == pytest.approx(0.69, abs=0.05) and sum(wrong[-5:]) / 5 < 0.45  # half of the pictures, dogs, lack nothing
    drawn, wanted = both()
    assert misses.loss(drawn, wanted, asked)[0] == 0  # it has hardly learnt
    misses.updates = critic.HEAD
    drawn.requires_grad_()
    lacks, _ = misses.loss(drawn, wanted, asked)
    gradient, = torch.autograd.grad(lacks, drawn)
    towards = (gradient * mark).sum((1, 2, 3))
    assert lacks > 0.69 and (towards[::2] < 0).all() and towards[::2].mean() < 3 * towards[1::2].mean()
    assert all(torch.equal(weight, was) for weight, was in zip(reads.parameters(), before))


def test_the_reader_learns_to_say_what_latents_show(guide, monkeypatch):
    monkeypatch.setattr(loop, "PRECISION", torch.float32)
    torch.manual_seed(0)
    captions = ["a cat on the beach", "a dog in the snow", "a cat and a dog at night", ""]
    tokens = chain.tokens_of(guide, captions)
    wanted = reader.named(guide, tokens)
    cat, dog = (OBJECTS.index(name) for name in ("cat", "dog"))
    assert [row.nonzero()[:, 0].tolist() for row in wanted] == [[cat], [dog], [cat, dog], []]
    assert reader.right(wanted[:3] + 0.1 * torch.rand(3, 64), wanted[:3]) == 1 and reader.right(wanted[[1, 0]], wanted[:2]) == 0
    model, loss = reader.Reader(), reader.loss_of(guide, ALPHAS)
    latents = torch.randn(4, 4, 16, 16)
    with torch.no_grad():
        first = loss(model, (latents, tokens))[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(25):
        value = loss(model, (latents, tokens))[0]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert value < 0.25 * first and reader.right(model(latents[:3]).detach(), wanted[:3]) == 1
    with torch.no_grad():
        alone = [loss(model, (torch.cat([latents[:2], each]), tokens[[0, 1, 3]]))[0] for each in (latents[3:], 9 * latents[3:])]
    assert abs(alone[0] - alone[1]) < 0.05 * first  # whatever an empty caption's picture shows


def test_the_reader_sees_equal_latents_alike_and_others_the_less_alike_the_more_they_differ():
    torch.manual_seed(0)
    reads, latents, other = chain.frozen(reader.Reader()), torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16)
    found = [float(reader.distance(reads, latents + share * other, latents)) for share in (0, 0.1, 0.5, 2)]
    assert found[0] < 1e-9 and found == sorted(found) and found[-1] <= 4  # of vectors of unit length
    features = reads.features(latents)
    a, b = features[0][0, :, 3, 5], reads.features(other)[0][0, :, 3, 5]
    alone = SimpleNamespace(features=lambda x: [reads.features(x)[0][:1, :, 3:4, 5:6]])
    assert float(reader.distance(alone, latents, other)) == pytest.approx(2 - 2 * float(a @ b / a.norm() / b.norm()), rel=1e-4)


def test_what_the_reader_misses_and_what_the_critics_tell_is_added_to_the_loss(guide, workshop):
    torch.manual_seed(0)
    tokens, latents = chain.tokens_of(guide, ["a cat", "a cat", "a fox", "a fox", "a dog"]), torch.randn(5, 4, 16, 16, requires_grad=True)
    reads = chain.frozen(reader.Reader())
    critics, heard = [critic.Critic(ALPHAS), critic.Comparer(reads, ALPHAS)], []
    for each in critics:
        each.updates, each.loss = critic.HEAD, lambda *shown, loss=each.loss: heard.append(shown) or loss(*shown)
    wanted, pairs_of = torch.randn(5, 4, 16, 16), torch.randn(3, 2, 4, 16, 16)
    added, told = refine.more_of(guide, reads, *critics, iter([pairs_of]), ALPHAS)(latents, wanted, tokens, 4)
    (two, real), (one, targets, asked) = heard
    assert torch.equal(two, latents[:4].view(2, 2, 4, 16, 16)) and real is pairs_of
    assert torch.equal(one, latents[:4]) and torch.equal(targets, wanted[:4]) and torch.equal(asked, reader.named(guide, tokens)[:4])
    wrong, seen, found, lacks = (float(told[name].detach()) for name in ("wrong", "seen", "told", "lacks"))
    assert float(added.detach()) == pytest.approx(refine.READ * wrong + refine.SEEN * seen + refine.TOLD * found + refine.LACKS * lacks)
    assert found > 0 < lacks
    added.backward()
    assert latents.grad.abs().amax((1, 2, 3)).min() > 0  # the real scene too must show what its caption names


def test_what_is_refined_is_of_the_moving_average(guide, workshop):
    seen = []

    def batches(average):
        while True:
            seen.append(average.weight.item())
            yield None

    model = torch.nn.Linear(1, 1, bias=False)
    average, _ = loop.train("part", model, batches, lambda model, batch: (model.weight.sum(), {}), 0.002, 1e-2, horizon=1000)
    assert len(set(seen)) > 2 and average.weight.item() != model.weight.item() and not any(p.requires_grad for p in average.parameters())


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
    optimizer = [torch.optim.AdamW(pair.online.parameters(), lr=1e-2)]
    text, noise, errors = words(guide, ["a cat"]).expand(2, -1, -1), torch.randn(2, 4, 8, 8), []
    for _ in range(10):
        torch.manual_seed(1)  # the same noise and timesteps every time
        errors.append(score.follow(pair, optimizer, noise, text, ALPHAS, guide.unet))
    assert errors[-1]["online"] < 0.8 * errors[0]["online"]
    assert errors[0]["teacher"] == errors[0]["online"] == errors[-1]["teacher"]  # as which it begins, and which stays
    assert all(torch.equal(weight, before[name]) for name, weight in pair.student.state_dict().items())


def test_the_student_is_updated_and_its_mixture_moves(guide):
    torch.manual_seed(0)
    pair = score.Pair(network.student_of(guide.unet), copy.deepcopy(guide.unet).requires_grad_(True))
    online = [torch.optim.AdamW(pair.online.parameters(), lr=1e-4)]
    loss = score.loss_of(guide, ALPHAS, online, 3.0)
    tokens = chain.tokens_of(guide, ["a cat", "a dog"])
    batch = torch.randn(2, 4, 16, 16), tokens, torch.randn(2, 4, 16, 16), tokens.repeat(score.ONLINE + 1, 1)
    value, told = loss(pair, batch)
    value.backward()
    assert value.item() == pytest.approx((told["score"] + 1.0 * (told["match"] + 0.1 * told["huber"])).item(), rel=1e-5)
    assert told["huber"] > 0 and told["online"] > 0 and told["teacher"] > 0 and all(weight.grad is None for weight in pair.online.parameters())
    assert sum(float(weight.grad.abs().sum()) for weight in pair.student.parameters()) > 0
    pair.share.fill_(1)
    value, told = loss(pair, batch)
    assert value.item() == pytest.approx((told["score"] + 0.25 * (told["match"] + 0.1 * told["huber"])).item(), rel=1e-5)
    assert score.between(score.ALPHA, 0) == 0.7 and score.between(score.ALPHA, 1) == pytest.approx(0.98)


def test_training_captions_are_embedded_in_single_precision(guide):
    plain = words(guide, ["a cat"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(words(guide, ["a cat"]), plain)


def test_the_online_networks_updates_count_at_once_under_bfloat16(guide, monkeypatch):
    """torch's cache of cast weights would hide them until autocast is left."""
    monkeypatch.setattr(loop, "PRECISION", torch.bfloat16)
    torch.manual_seed(0)
    pair = score.Pair(network.student_of(guide.unet), copy.deepcopy(guide.unet).requires_grad_(True))
    optimizer = [torch.optim.AdamW(pair.online.parameters(), lr=1e-2)]
    text, noise, t = words(guide, ["a cat"]).expand(2, -1, -1), torch.randn(2, 4, 8, 8), torch.tensor([300, 500])
    with loop.autocast():
        score.follow(pair, optimizer, noise, text, ALPHAS)
        inside = pair.online(noise, t, text).sample.detach()
    with loop.autocast():
        assert torch.equal(pair.online(noise, t, text).sample, inside)


def test_a_student_in_training_may_round_and_what_is_reported_does_not(guide, workshop, monkeypatch):
    torch.manual_seed(0)
    text, noise = words(guide, ["a cat"]), torch.randn(4, 4, 8, 8)
    unet = network.student_of(guide.unet)
    with torch.no_grad():
        plain = network.one_step(unet, noise, text.expand(4, -1, -1), ALPHAS)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network.one_step(unet, noise, text.expand(4, -1, -1), ALPHAS)
    assert plain.dtype == rounded.dtype == torch.float32 and 0 < (rounded - plain).std() < 0.02 * plain.std()
    monkeypatch.setattr(loop, "PRECISION", torch.bfloat16)
    inside = []
    loop.train("part", unet, iter(lambda: noise, None), lambda unet, noise: (network.one_step(unet, noise, text.expand(4, -1, -1), ALPHAS).mean(), {}),
               0.005, 1e-6, report=lambda average: inside.append(torch.is_autocast_enabled("cpu")) or {}, report_every=0)
    assert inside and not any(inside)


def test_captions_of_score_distillation_are_fresh_and_half_of_what_is_judged_comes_from_pairs(guide, workshop):
    seen = []

    class Some:
        draw = staticmethod(lambda size: ("noise", "tokens", "latents"))

    for _, batch in zip(range(2), score.batches(Some, 3, lambda texts: seen.append(texts) or len(texts))):
        assert batch == ("noise", "tokens", "latents", 3 * (score.ONLINE + 1))
    assert seen[0] != seen[1] and all(text.split()[0] for text in seen[0])


def test_a_report_reads_what_one_step_draws(guide, workshop, monkeypatch):
    found = warmup.recalled(guide, 2, prompts=4, seeds=2)(network.student_of(guide.unet))
    assert set(found) == {"one", "two", "background", "diversity"} and all(0 <= found[name] <= 1 for name in ("one", "two", "background"))
    assert found["diversity"] == 0  # one that has learnt nothing draws nothing
    shown = lambda vae, latents: [Image.fromarray(each[:3].mul(60).add(128).clamp(0, 255).byte().permute(1, 2, 0).numpy()) for each in latents]  # noqa: E731
    monkeypatch.setattr(warmup, "painted", lambda vae, latents: [each.resize((256, 256)) for each in shown(vae, latents)])
    for drawn, low, high in ((lambda student, noise, text, alphas: noise, 0.5, 20), (lambda student, noise, text, alphas: torch.ones_like(noise), 0, 1e-6)):
        monkeypatch.setattr(network, "one_step", drawn)
        assert low <= warmup.recalled(guide, 2, prompts=4, seeds=2)(None)["diversity"] <= high


def test_a_further_teachers_student_goes_on_from_the_earlier_ones(workshop, guide, monkeypatch):
    unet = network.student_of(guide.unet)
    student = unet.state_dict()
    assert chain.earlier("distil", unet) is None
    leave("distil", {name: weight + 1 for name, weight in student.items()})
    assert chain.earlier("distil", unet) is None  # its own
    monkeypatch.setattr(chain, "digest", lambda: "fedcba9876543210")
    assert all(torch.equal(weight, student[name] + 1) for name, weight in chain.earlier("distil", unet).items())
    larger = network.student_of(parts.unet(widths=(32, 64, 32), depths=(2, 3, 1), heads=(2, 2, 2), context=32))
    assert chain.earlier("distil", larger) is None  # of another size
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
    for stage in UNETS:
        with pytest.raises(chain.NotYet, match=f"fastviz.stickers {stage}"):
            chain.student(guide, stage)
    with pytest.raises(chain.NotYet, match="student-decoder"):
        decoder.trained()
    with pytest.raises(chain.NotYet, match="stickers reader"):
        reader.trained()
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
    warmup.fit(moment, 2, 1e-3, fresh=0, room=8)
    reader.fit(moment, 2, 1e-3, fresh=0, room=8)
    for _ in range(2):
        refine.fit(moment, 2, 1e-3, fresh=0, room=8)
    assert [sitting["parent"] for sitting in chain.checkpoint("refine")["sittings"]] == 2 * [chain.checkpoint("warmup")["step"]]
    score.fit(moment, 2, 1e-4)
    done = loop.checkpoint(chain.name("score"))
    score.fit(moment, 2, 1e-4)
    again = loop.checkpoint(chain.name("score"))
    assert again["step"] > done["step"] > 0 and 0 <= done["model"]["share"] <= again["model"]["share"] <= 1
    assert [sitting["steps"] for sitting in again["sittings"]] == [0, done["step"], again["step"] - done["step"]]
    assert again["sittings"][0]["head"] > 0 and all(sitting["batch"] == 2 for sitting in again["sittings"])

    (workshop / "hashes.json").write_text(json.dumps({"model/unet/config.json": "kept"}))
    assert export.export(workshop) == "score"
    folder = workshop / "sdxs"
    assert verified.check(folder) == "" and json.loads((workshop / "hashes.json").read_text())["model/unet/config.json"] == "kept"
    told = json.loads((folder / export.ABOUT).read_text())
    assert told["teacher"] == chain.digest() and told["pairs"] == {"count": 4, "steps": 2, "guidance": 3.0}
    assert set(told["stages"]) == {"decoder", *UNETS} and told["stages"]["score"]["step"] == again["step"]
    assert told["stages"]["distil"]["sittings"] == loop.checkpoint(chain.name("distil"))["sittings"]
    assert [sitting["lr"] for sitting in told["stages"]["distil"]["sittings"]] == [1e-3, 1e-3]
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    noise = pairs.noise_of([1], 16)
    drawn = pipe("a cat", num_inference_steps=1, guidance_scale=1.0, latents=noise, height=128, width=128, output_type="latent").images
    with torch.no_grad():
        ours = network.one_step(chain.student(guide, "score"), noise, words(guide, ["a cat"]), ALPHAS)
    assert torch.allclose(drawn, ours, atol=0.02 * float(ours.std()))
    assert export.export(workshop, "warmup") == "warmup"
    told = json.loads((folder / export.ABOUT).read_text())
    assert told["stage"] == "warmup" and set(told["stages"]) == {"decoder", "distil", "warmup"}
    shipped, trained = UNet2DConditionModel.from_pretrained(folder / "unet"), chain.student(guide, "warmup")
    assert torch.equal(shipped.conv_in.weight, trained.conv_in.weight.half().float())


def test_a_stage_begins_again_when_the_one_before_was_trained_further(workshop, guide, capsys):
    weights = network.student_of(guide.unet).state_dict()
    leave("distil", weights)
    assert chain.parent("warmup") == 3
    leave("warmup", weights, parent=3)
    assert chain.parent("warmup") == 3 and loop.checkpoint(chain.name("warmup")) and capsys.readouterr().out == ""
    leave("warmup", weights, parent=2)
    assert chain.parent("warmup") == 3 and loop.checkpoint(chain.name("warmup")) is None
    assert "begins again" in capsys.readouterr().out and (workshop / f"{chain.name('warmup')}.before").exists()


@pytest.fixture
def elsewhere(workshop, guide, tiny_pipe, monkeypatch):
    """elsewhere(stage): the student as exported after it by another machine, and nothing in training/ but pairs."""
    for module in (loop, export):
        monkeypatch.setattr(module, "SHIPPED", workshop)
    monkeypatch.setattr(chain, "MODEL", SimpleNamespace(folder=workshop / "model", guidance=3.0))
    (workshop / "hashes.json").write_text("{}")

    def export_of(stage):
        torch.manual_seed(0)
        student = network.student_of(guide.unet).state_dict()
        leave("decoder", network.small_vae(tiny_pipe.vae).decoder.state_dict())
        leave("distil", student)
        leave("warmup", student, parent=3)
        leave("refine", student, parent=3)
        leave("score", {f"student.{name}": weight for name, weight in student.items()}, parent=3)
        pairs.save(torch.zeros(4, 4, 32, 32).half(), 2, 3.0)
        export.export(workshop, stage)
        for path in workshop.glob("student-[drsw]*.pt"):
            path.unlink()
        return json.loads((workshop / "sdxs" / export.ABOUT).read_text())

    return export_of


def test_any_machine_goes_on_from_the_committed_student(elsewhere, workshop, guide):
    before = elsewhere("warmup")
    assert chain.checkpoint("distil") is None is chain.checkpoint("score") and chain.parent("warmup") == 3 == chain.parent("refine")
    assert export.about("warmup") == before
    weight = UNet2DConditionModel.from_pretrained(workshop / "sdxs/unet").conv_in.weight
    assert torch.equal(chain.student(guide, "warmup").conv_in.weight, weight.float())
    warmup.fit(0.02, 2, 1e-5, fresh=0, room=8)
    decoder.fit(0.02, 2, 1e-5)
    for stage in ("warmup", "decoder"):
        saved, told = chain.checkpoint(stage), export.about("warmup")
        assert saved["step"] > 3 and saved["hours"] >= 0.1 and len(saved["sittings"]) == 2 and "test" in told["stages"][stage]["device"]
    assert chain.parent("warmup") == 3 and told["stages"]["distil"] == before["stages"]["distil"]
    assert torch.allclose(chain.student(guide, "warmup").conv_in.weight, weight.float(), atol=0.01)
    assert chain.parent("refine") == chain.checkpoint("warmup")["step"]


def test_a_committed_student_of_the_full_recipe_is_at_the_end_of_its_mixture(elsewhere, workshop, guide, monkeypatch):
    elsewhere("score")
    assert chain.checkpoint("warmup") is None and chain.parent("score") == 3
    monkeypatch.setattr(score, "HEAD", 2)
    score.fit(0.02, 2, 1e-5)
    saved = loop.checkpoint(chain.name("score"))
    assert saved["model"]["share"] == 1 and saved["step"] > 3 and [each.get("head") for each in saved["sittings"]] == [None, 2, None]
    assert chain.checkpoint("score")["step"] == saved["step"] and chain.parent("score") == 3


def test_a_student_that_is_not_fit_to_be_seen_is_kept_elsewhere_and_gone_on_from_first(elsewhere, workshop, guide):
    shown = elsewhere("warmup")
    warmup.fit(0.02, 2, 1e-5, fresh=0, room=8)
    assert export.keep(workshop) == "warmup" and json.loads((workshop / "sdxs" / export.ABOUT).read_text()) == shown
    kept, step = workshop / chain.KEPT, chain.checkpoint("warmup")["step"]
    (workshop / f"{chain.name('warmup')}.pt").unlink()
    assert chain.checkpoint("warmup")["step"] == step > 3 and chain.checkpoint("decoder") and verified.check(kept) == ""
    weight = UNet2DConditionModel.from_pretrained(kept / "unet").conv_in.weight
    assert torch.equal(chain.student(guide, "warmup").conv_in.weight, weight.float())
    assert export.export(workshop) == "warmup" and not kept.exists()
    assert not any(name.startswith(chain.KEPT) for name in json.loads((workshop / "hashes.json").read_text()))
    assert chain.checkpoint("warmup")["step"] == step


def test_what_is_trained_here_is_not_mixed_with_what_is_committed(elsewhere, guide):
    elsewhere("warmup")
    leave("distil", network.student_of(guide.unet).state_dict())
    assert chain.checkpoint("warmup") is None and chain.parent("warmup") == 3
    other = dict(chain.committed()[1], teacher="other")
    (loop.SHIPPED / "sdxs" / export.ABOUT).write_text(json.dumps(other))
    assert chain.committed() == (None, {}) and chain.checkpoint("decoder") is None


def test_an_interrupted_mixture_goes_on_from_the_share_that_it_reached(workshop, guide, monkeypatch):
    weights = network.student_of(guide.unet).state_dict()
    leave("refine", weights)
    pairs.save(torch.zeros(2, 4, 16, 16).half(), 2, 3.0)
    pair = score.Pair(network.student_of(guide.unet), copy.deepcopy(guide.unet))
    pair.share.fill_(0.4)
    leave("score", pair.state_dict(), parent=3)
    shares = []

    def train(name, model, *args, passed, **told):
        for share in (0, 0.5, 1):
            passed(share)
            shares.append(float(model.share))

    monkeypatch.setattr(score, "train", train)
    score.fit(0.01, 2, 1e-4)
    assert shares == pytest.approx([0.4, 0.7, 1.0])


def leave(stage, weights, parent=None):
    """A checkpoint as a stage leaves it that began at step `parent` of the one before."""
    torch.save({"model": weights, "average": weights, "step": 3, "hours": 0.1, "log": [{"device": "test"}],
                "sittings": [{"batch": 2, "parent": parent}]}, loop.WORK / f"{chain.name(stage)}.pt")


def test_an_evaluation_tells_every_way_and_draws_nothing_twice(workshop, guide, tiny_pipe, monkeypatch, capsys):
    torch.manual_seed(0)
    student = network.student_of(guide.unet).state_dict()
    leave("decoder", network.small_vae(tiny_pipe.vae).decoder.state_dict())
    leave("warmup", student)
    leave("score", {f"student.{name}": weight for name, weight in student.items()})
    for name, value in (("FULL", 3), ("FEW", 2), ("SEEDS", 2), ("SPREAD", 2), ("SHOWN", 2)):
        monkeypatch.setattr(evaluate, name, value)
    monkeypatch.setattr(card, "STUDENTS", workshop / "bench/student.json")
    monkeypatch.setattr(card, "write", lambda: written.append(card.found(card.STUDENTS)))
    monkeypatch.setattr(loop, "SHIPPED", workshop)
    written = []
    evaluate.main(1, 1)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = told["rows"]
    assert list(rows) == ["Teacher, 3 steps", "Teacher, 2 steps", "Teacher, 1 step", "Student, warm-up only", "Student, full recipe"]
    assert [told] == written and told["weights"] == chain.digest() and Image.open(workshop / "student.webp").width > 500
    assert card.student(told) == "" == card.student(None)  # of other weights than the committed
    section = card.student(told | {"weights": fitted.weights(MODELS["stickers"].folder)})
    assert "evaluate-student --count 1`" in section and all(f"| {name} | " in section for name in told["rows"]) and "none is shipped" in section
    assert f"parameters kept {told['accepted']['parameters kept'][0]:g}, bar 0.4: " in section
    teacher, *_, student = rows.values()
    assert teacher["lpips, one"] == 0 < student["lpips, two"]
    assert student["parameters"]["unet"] < teacher["parameters"]["unet"] and student["parameters"]["decoder"] > 0
    assert all(row["seconds"] > 0 for row in rows.values()) and told["seconds"]["student"] == student["seconds"]
    assert student["gflop"] < teacher["gflop"] and not any(row["shipped"] for row in rows.values())
    assert rows["Student, warm-up only"] | {"seconds": student["seconds"]} == student and told["seconds"]["ratio"] > 0  # the same weights
    value, bar, good = told["accepted"]["parameters kept"]
    assert value == pytest.approx(student["parameters"]["unet"] / teacher["parameters"]["unet"], abs=1e-4) and good == (value <= bar)
    for name in ("networks", "decoders", "rows"):
        assert (workshop / f"student-{name}.png").stat().st_size > 5000
    drawn = {path: path.stat().st_mtime_ns for path in workshop.rglob("student-drawn-*/*/*.png")}
    assert len(drawn) == 5 * (2 + 2 * 2)
    (workshop / f"{chain.name('warmup')}.pt").unlink()  # as on another machine
    evaluate.main(1, 1)
    again = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert list(again) == list(rows) and again["Student, warm-up only"] == rows["Student, warm-up only"]
    row, first = ("teacher-2", tiny_pipe, 2, 3.0), evaluate.FIRST[1]
    text = evaluate.evaluate.prompts(2, objects=1)[0].caption
    gone = evaluate.path_of(row, text, first)
    gone.unlink()
    evaluate.drawn(row, [text, "a dog"], first)  # more prompts than before: what was drawn stays that prompt's picture
    assert [path for path in drawn if path.stat().st_mtime_ns != drawn[path]] == [gone]


def test_a_student_is_accepted_by_four_figures():
    teacher = {"one": 0.98, "two": 0.92, "diversity": 0.5, "parameters": {"unet": 100, "decoder": 10}}
    good = evaluate.accepted(teacher, {"one": 0.94, "two": 0.88, "diversity": 0.4, "parameters": {"unet": 40, "decoder": 9}}, 30)
    assert good == {"recall lost": (0.04, 0.05, True), "speed": (30, 25, True), "diversity kept": (0.8, 0.7, True),
                    "parameters kept": (0.4, 0.4, True)}
    bad = evaluate.accepted(teacher, {"one": 0.9, "two": 0.8, "diversity": 0.3, "parameters": {"unet": 50, "decoder": 1}}, 20)
    assert not any(reached for _, _, reached in bad.values())


def test_the_exported_student_is_what_is_evaluated(workshop, guide, tiny_pipe, monkeypatch):
    """Its weights are those of half precision, and only where they are of the checkpoints that are here."""
    monkeypatch.setattr(loop, "SHIPPED", workshop)
    monkeypatch.setattr(chain, "MODEL", SimpleNamespace(folder=workshop / "model", guidance=3.0))
    (workshop / "hashes.json").write_text("{}")
    student = network.student_of(guide.unet).state_dict()
    leave("decoder", network.small_vae(tiny_pipe.vae).decoder.state_dict())
    leave("warmup", student)
    leave("score", {f"student.{name}": weight for name, weight in student.items()})
    export.export(workshop, "warmup")
    ways = evaluate.rows(guide)
    single, half = ways["Student, full recipe"], ways["Student, warm-up only"]
    assert half[0] == "warmup-3-3-shipped" and single[0] == "score-3-3"
    assert torch.equal(half[1].unet.conv_in.weight, single[1].unet.conv_in.weight.half().float())
    assert not torch.equal(half[1].unet.conv_in.weight, single[1].unet.conv_in.weight)
    leave("warmup", student, parent=8)
    assert evaluate.rows(guide)["Student, warm-up only"][0] == "warmup-3-3"


# The loop

def line():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2), iter(lambda: torch.randn(4, 3), None)


def test_a_step_whose_gradient_is_not_finite_is_left_out_and_counted(workshop, monkeypatch):
    monkeypatch.setattr(loop, "RECENT", 0)
    model, batches = line()
    seen = []

    def loss(model, batch):
        seen.append(model.weight.detach().clone())
        return model(batch).square().mean() * (float("nan") if len(seen) == 3 else 1), {}

    _, (row,) = loop.train("part", model, batches, loss, 0.003, 1e-3)
    assert torch.equal(seen[2], seen[3]) and not torch.equal(seen[3], seen[4]) and all(weight.isfinite().all() for weight in seen)
    assert row["skipped"] == 1 and row["step"] == len(seen) - 1 and np.isfinite(row["loss"])  # told at its end


def test_weights_that_are_not_finite_are_never_saved(workshop):
    model, batches = line()
    loop.train("part", model, batches, lambda model, batch: (model(batch).square().mean(), {}), 0.002, 1e-3)
    step = loop.checkpoint("part")["step"]

    def spoiling(model, batch):
        loss = model(batch).square().mean()
        with torch.no_grad():
            model.bias.fill_(float("inf"))
        return loss, {}

    with pytest.raises(FloatingPointError, match="not finite"):
        loop.train("part", model, batches, spoiling, 0.002, 1e-3)
    assert loop.checkpoint("part")["step"] == step


def test_a_checkpoint_tells_the_recipe_of_every_sitting(workshop):
    model, batches = line()
    shares = []
    for batch in (4, 5):
        loop.train("part", model, batches, lambda model, batch: (model(batch).square().mean(), {}), 0.002, 1e-3, decay=0.5,
                   recipe={"batch": batch}, passed=shares.append)
    saved = loop.checkpoint("part")
    assert [sitting["batch"] for sitting in saved["sittings"]] == [4, 5]
    assert sum(sitting["steps"] for sitting in saved["sittings"]) == saved["step"] == len(shares)
    assert all(sitting["lr"] == 1e-3 and sitting["decay"] == 0.5 and sitting["minutes"] >= 0 for sitting in saved["sittings"])
    assert shares[0] == 0 and max(shares) < 1 and shares[1] > 0
