"""OLSS: its mathematics against direct least squares and brute force, its scheduler in diffusers, its files and refusals."""

import dataclasses
import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import at_home
from diffusers import DDIMScheduler, StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from fastviz import compare, fitted, models
from fastviz.fit import calibrate, runs, solvers, subspace
from fastviz.methods import olss
from fastviz.patch import Refused
from fastviz.request import BadRequest, Request
from fastviz.run import context_of, generate, pictures
from fastviz.schedulers import OLSSScheduler, alphas_of, ddim
from fastviz.search.network import Network
from fastviz.stickers import parts
from fastviz.trace import Trace

CONFIG = dict(parts.scheduler().config)


class Mixture:
    """A network in closed form: the noise in latents (B, 4, 2, 2) whose data are a mixture of Gaussians."""

    def __init__(self, count, seed, spread=0.5, modes=5):
        self.start = torch.randn(count, 4, 2, 2, generator=torch.Generator().manual_seed(seed))
        self.means = torch.randn(modes, 16, generator=torch.Generator().manual_seed(0), dtype=torch.double)
        self.alphas, self.spread, self.calls = parts.scheduler().alphas_cumprod.double(), spread, 0

    def __call__(self, x, t):
        self.calls += 1
        alpha = self.alphas[int(t)]
        variance = alpha * self.spread ** 2 + 1 - alpha
        away = x.double().flatten(1)[:, None] - alpha.sqrt() * self.means
        share = (-away.square().sum(2) / 2 / variance).softmax(1)
        return ((1 - alpha).sqrt() * (share[..., None] * away).sum(1) / variance).view_as(x).to(x)


class Straight(Mixture):
    """A network that always gives the same answer: every deterministic sampler is exact, in one step or in many."""

    def __call__(self, x, t):
        return torch.flip(self.start, [0]).to(x)


@pytest.fixture(scope="module")
def known():
    """What a fit knows of the mixture: 40 full steps, 24 runs to fit to, 8 to choose by, 16 to measure."""
    return calibrate.study(CONFIG, 40, [Mixture(12, 1), Mixture(12, 2)], [Mixture(8, 3)], [Mixture(16, 4)])


def prior_of(found, nodes):
    return ddim(alphas_of(CONFIG, found.full.timesteps[nodes].tolist()))


def error_of(found, nodes, coefficients):
    timesteps = found.full.timesteps[nodes].tolist()
    return calibrate.measure(found, solvers.linear(CONFIG, timesteps, coefficients)).rmse


# Least squares

@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 99), st.floats(0, 1e-2))
def test_the_triangle_gives_the_answers_and_errors_of_all_rows(steps, blocks, seed, lam):
    rng = torch.Generator().manual_seed(seed)
    A = [torch.randn(40, 2 * steps + 1, generator=rng, dtype=torch.double) for _ in range(blocks)]
    R, whole = subspace.triangle(iter(A)), torch.cat(A)
    prior = torch.randn(steps + 1, generator=rng, dtype=torch.double)
    columns = [0, *range(steps + 1, 2 * steps + 1)]
    found = subspace.solve(R[:, columns], R[:, steps], prior, lam)
    direct = whole[:, columns]
    s = direct.square().sum(0).mean()
    normal = direct.T @ direct + lam * s * torch.eye(steps + 1, dtype=torch.double)
    expected = prior + torch.linalg.solve(normal, direct.T @ (whole[:, steps] - direct @ prior))
    assert (found - expected).abs().max() < 1e-10
    short, long = ((M[:, steps] - M[:, columns] @ found).norm() for M in (R, whole))
    assert abs(short - long) < 1e-10
    for nodes in ([0], list(range(0, steps, 2))):
        plain = whole[:, [nodes[-1], *(steps + 1 + k for k in nodes)]]
        for m, error in zip(range(nodes[-1] + 1, steps + 1), subspace.hop_errors(R, nodes), strict=True):
            best = torch.linalg.lstsq(plain, whole[:, [m]]).solution
            assert abs(error - (whole[:, [m]] - plain @ best).norm()) < 1e-10


def test_an_infinite_hold_is_the_prior_and_a_strong_one_comes_near_it():
    F, y, prior = torch.randn(30, 3).double(), torch.randn(30).double(), torch.tensor([1.0, 2, 3]).double()
    assert torch.equal(subspace.solve(F, y, prior, math.inf), prior)
    gaps = [(subspace.solve(F, y, prior, lam) - prior).norm() for lam in (0, 1e-2, 1, 100, 1e6)]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 1e-5 < gaps[0]


# Which timesteps

def worst(R, nodes):
    """The largest hop error of a path."""
    ends = [*nodes[1:], R.shape[1] // 2]
    return max(float(subspace.hop_errors(R, nodes[:k + 1])[end - nodes[k] - 1]) for k, end in enumerate(ends))


@pytest.mark.parametrize("n", (2, 3))
def test_search_finds_what_trying_every_path_finds(n):
    found = calibrate.study(CONFIG, 10, [Mixture(12, 1)], [], [])
    paths = [[0, a] for a in range(1, 10)] if n == 2 else [[0, a, b] for a in range(1, 10) for b in range(a + 1, 10)]
    best = min(worst(found.R, path) for path in paths)
    path = subspace.search(found.R, n)
    assert path in paths and worst(found.R, path) <= best * (1 + 1e-6)


@pytest.mark.parametrize("n", (1, 2, 5, 13, 39, 40))
def test_paths_have_n_nodes_that_rise_from_the_start(known, n):
    for path in (subspace.search(known.R, n), subspace.even(40, n), subspace.fill(known.R, {0, 40 // 2}, max(2, n))[:n]):
        assert len(path) == n and path[0] == 0 and path[-1] < 40 and all(a < b for a, b in zip(path, path[1:]))


@given(st.integers(1, 300), st.integers(1, 300))
def test_even_nodes_are_as_even_as_whole_numbers_allow(a, b):
    N, n = max(a, b), min(a, b)
    nodes = subspace.even(N, n)
    gaps = np.diff([*nodes, N])
    assert len(nodes) == n and nodes[0] == 0 and gaps.min() >= 1 and gaps.max() - gaps.min() <= 2


def test_a_short_path_is_filled_at_its_worst_hop():
    straight = calibrate.study(CONFIG, 10, [Straight(6, 1)], [], [])
    assert subspace.reach(straight.R, 1e-3, 4) == [0]  # one stride is exact: the search has no use for a second
    path = subspace.search(straight.R, 4)
    assert len(path) == 4 and path[0] == 0
    bent = calibrate.study(CONFIG, 20, [Mixture(12, 1)], [], [])
    nodes = [0, 2, 15]
    errors = {hop: float(subspace.hop_errors(bent.R, nodes[:k + 1])[hop[1] - hop[0] - 1])
              for k, hop in enumerate(((0, 2), (2, 15), (15, 20)))}
    low, high = max(errors, key=errors.get)
    (new,) = set(subspace.fill(bent.R, nodes, 4)) - set(nodes)
    assert low < new < high and worst(bent.R, sorted([*nodes, new])) < errors[low, high]


# Coefficients

@pytest.mark.parametrize("n", (4, 10, 20))
@pytest.mark.parametrize("seed", (5, 6))
def test_even_nodes_and_an_infinite_hold_are_diffusers_ddim(known, n, seed):
    nodes = subspace.even(40, n)
    timesteps = known.full.timesteps[nodes].tolist()
    coefficients = subspace.coefficients(known.R, nodes, prior_of(known, nodes), math.inf)
    theirs, network = solvers.reference(CONFIG, n), Mixture(3, seed)
    assert timesteps == theirs.timesteps.tolist()
    ours = runs.record(solvers.linear(CONFIG, timesteps, coefficients), network)[0]
    torch.testing.assert_close(ours, runs.record(theirs, network)[0], rtol=0, atol=3e-5)


@pytest.mark.parametrize("search", ("olss", "olss-p"))
def test_as_many_steps_as_the_full_run_are_the_full_run(known, search):
    fit = calibrate.fit(known, search, 40)
    assert fit.nodes == list(range(40)) and calibrate.measure(known, solvers.linear(CONFIG, fit.timesteps, fit.coefficients)).rmse < 1e-3


def test_the_error_falls_with_the_steps_and_is_below_ddims(known):
    found = {}
    for n in (2, 4, 8, 16):
        fit = calibrate.fit(known, "olss", n)
        found[n] = calibrate.measure(known, solvers.linear(CONFIG, fit.timesteps, fit.coefficients)).rmse
        assert found[n] < min(calibrate.measure(known, peer).rmse for name, peer in solvers.peers(CONFIG, n).items() if "DDIM" in name)
    assert found[2] > found[4] > found[8] > found[16]


def test_the_hold_and_the_refit_are_chosen_by_runs_that_nothing_was_fitted_to(known):
    nodes = subspace.even(40, 5)
    prior, elsewhere = calibrate.prior_at(known, nodes, "unipc"), dataclasses.replace(known, measuring=known.choosing)
    errors = {hold: error_of(elsewhere, nodes, subspace.coefficients(known.R, nodes, prior, hold)) for hold in calibrate.HOLDS}
    fit = calibrate.fit(known, "olss-p", 5)
    assert fit.nodes == nodes and fit.error == pytest.approx(min(errors.values())) and errors[fit.hold] == min(errors.values()) and not fit.refit
    both = calibrate.fit(known, "olss-p", 5, refit=True)
    again = {hold: error_of(elsewhere, nodes, calibrate.refitted(known, dataclasses.replace(fit, hold=hold), prior))
             for hold in calibrate.HOLDS if 0.09 < hold / fit.hold < 11}  # beside the best one
    assert 2 <= len(again) <= 3 and both.refit == (min(again.values()) < fit.error) and both.error == pytest.approx(min(*again.values(), fit.error))


@pytest.mark.parametrize("n", (3, 5, 8))
def test_searched_nodes_are_never_worse_than_even_ones_or_the_papers_on_the_runs_that_choose(known, n):
    found = calibrate.fit(known, "olss", n)
    for start in calibrate.starts(known, "olss", n):
        assert found.error <= min(one.error for one in calibrate.fits(known, start, "unipc"))
    assert found.nodes[0] == 0 and len(set(found.nodes)) == n and found.nodes == sorted(found.nodes)


def test_a_climb_moves_nodes_until_no_move_helps(known):
    start, = calibrate.fits(known, [0, 1, 2, 3, 4], "unipc", (0.1,))
    found = calibrate.climbed(known, start, "unipc")
    assert found.error < start.error and found.nodes[0] == 0 and found.hold == 0.1
    assert calibrate.neighbours([0, 3, 5], 2, 6) == [[0, 1, 5]] and calibrate.neighbours([0, 3], 1, 6) == [[0, 2], [0, 4]]
    assert calibrate.climbed(known, found, "unipc").error <= found.error


def test_a_refit_fits_to_what_the_short_run_meets(known):
    nodes = subspace.even(40, 4)
    fit = calibrate.Fit(nodes, known.full.timesteps[nodes].tolist(), None, 1e-9)
    prior = prior_of(known, nodes)
    again, forced = calibrate.refitted(known, fit, prior), subspace.coefficients(known.R, nodes, prior, 1e-9)
    assert again[0][0] == pytest.approx(forced[0][0], rel=1e-4) and again[1][1] != pytest.approx(forced[1][1], rel=1e-2)
    own = dataclasses.replace(known, measuring=known.fitting)
    for i, target in enumerate([*nodes[1:], 40]):  # its latents: no combination of what it saw comes closer to the full run's
        seen = [runs.record(solvers.linear(CONFIG, fit.timesteps, again), group.network) for group in own.fitting]
        F = torch.cat([torch.stack([xs[0], *es[:i + 1]], -1).flatten(0, -2) for xs, es in seen]).double()
        y = torch.cat([group.path[target].flatten() for group in own.fitting]).double()
        best = torch.linalg.lstsq(F, y[:, None]).solution[:, 0]
        taken = torch.cat([xs[i + 1].flatten() for xs, _ in seen]).double()
        assert (taken - y).norm() <= (F @ best - y).norm() * (1 + 1e-3)


@pytest.mark.parametrize("solver", ("ddim", "dpm", "unipc"))
def test_the_coefficients_of_a_solver_make_its_runs(solver):
    network, timesteps = Mixture(3, 5), [999, 800, 555, 321, 123, 12]
    own = solvers.at(CONFIG, solver, timesteps)
    found = solvers.linear(CONFIG, timesteps, solvers.combination(own))
    torch.testing.assert_close(runs.record(found, network)[0], runs.record(own, network)[0], rtol=1e-4, atol=1e-4)
    wx, we = solvers.combination(solvers.linear(CONFIG, timesteps))
    assert wx == pytest.approx(ddim(alphas_of(CONFIG, timesteps))[0]) and we[-1] == pytest.approx(ddim(alphas_of(CONFIG, timesteps))[1][-1])


# What it is compared with

def test_peers_end_at_the_full_runs_noise_level(known):
    network = Straight(4, 3)
    level = alphas_of(CONFIG, [999])
    e = network(network.start, 0)
    exact = math.sqrt(level[1] / level[0]) * (network.start - math.sqrt(1 - level[0]) * e) + math.sqrt(1 - level[1]) * e
    found = solvers.peers(CONFIG, 6)
    assert list(found) == ["DDIM", "DDIM" + solvers.AYS, "DPM-Solver++ 2M", "DPM-Solver++ 2M" + solvers.AYS, "UniPC", "UniPC" + solvers.AYS]
    for name, scheduler in found.items():
        torch.testing.assert_close(runs.end(scheduler, network), exact, rtol=1e-4, atol=1e-3, msg=name)


@pytest.mark.parametrize("solver", ("dpm", "unipc"))
def test_chosen_timesteps_that_are_a_solvers_own_change_nothing(solver):
    own, network = solvers.multistep(CONFIG, solver), Mixture(2, 3)
    own.set_timesteps(6)
    same, other = (solvers.at(CONFIG, solver, each) for each in (own.timesteps.tolist(), [999, 700, 500, 300, 200, 50]))
    torch.testing.assert_close(runs.end(same, network), runs.end(own, network), rtol=0, atol=1e-5)
    assert (runs.end(other, network) - runs.end(own, network)).abs().max() > 1e-3


def test_chosen_timesteps_bring_their_noise_levels():
    timesteps, network = [999, 700, 500, 300, 200, 50], Mixture(2, 3)
    for solver in ("dpm", "unipc"):
        torch.testing.assert_close(solvers.at(CONFIG, solver, timesteps).sigmas.double(), runs.noise_levels(CONFIG, timesteps), rtol=1e-5, atol=0)
    theirs = solvers.multistep(CONFIG, "dpm")
    theirs.set_timesteps(timesteps=timesteps)  # which UniPC does not take
    torch.testing.assert_close(runs.end(solvers.at(CONFIG, "dpm", timesteps), network), runs.end(theirs, network), rtol=0, atol=1e-5)


def test_a_schedulers_runs_are_all_alike():
    for scheduler in solvers.peers(CONFIG, 5).values():
        assert torch.equal(runs.end(scheduler, Mixture(2, 3)), runs.end(scheduler, Mixture(2, 3)))


def test_ays_timesteps_are_the_published_ones_for_stable_diffusions_betas_alone():
    assert solvers.ays(CONFIG, 10) == [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    assert solvers.ays({**CONFIG, "beta_end": 0.02}, 10) is None and solvers.ays(CONFIG, 300) is None
    assert solvers.ays(CONFIG, 5) == [999, 736, 545, 343, 124]
    between = runs.noise_levels(CONFIG, solvers.ays(CONFIG, 20))
    for a, middle, b in zip(between[0:-2:2], between[1:-1:2], between[2::2]):
        assert middle == pytest.approx(math.sqrt(a * b), rel=0.02)  # whole timesteps come no closer
    for n in (1, 4, 7, 20, 30):
        found = solvers.ays(CONFIG, n)
        assert len(found) == n and found[0] == 999 and all(a > b for a, b in zip(found, found[1:]))
    other = calibrate.study({**CONFIG, "beta_end": 0.02}, 5, [Straight(2, 1)], [], [])
    assert calibrate.starts(other, "ays", 3) == [] and calibrate.fit(other, "ays", 3) is None


def test_gaps_vanish_on_the_path_and_are_distances_off_it(known):
    path, full = known.measuring[0].path, known.full.timesteps.tolist()
    nodes = subspace.even(40, 8)
    taken = path[[*nodes, 40]]
    assert max(runs.gaps(CONFIG, path, full, taken, [full[k] for k in nodes])) < 1e-6
    assert runs.gaps(CONFIG, path, full, taken + 0.25, [full[k] for k in nodes]) == pytest.approx([0.25] * 8, abs=1e-4)
    fine = solvers.reference(CONFIG, 200)
    xs, timesteps = runs.record(fine, Mixture(16, 4))[0], fine.timesteps.tolist()
    assert max(runs.gaps(CONFIG, xs[::4], timesteps[::4], xs, timesteps)) < 0.02  # every fourth latent tells the others


# The scheduler in diffusers

def ddim_scheduler(n=4, **fitted):
    timesteps = solvers.reference(CONFIG, n).timesteps.tolist()
    return solvers.linear(CONFIG, timesteps, fitted=fitted or None)


def picture(pipe, scheduler, steps=4, **more):
    pipe = StableDiffusionPipeline(**{**pipe.components, "scheduler": scheduler}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    start = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    return pipe(["a cat", "an owl"], num_inference_steps=steps, guidance_scale=3.0, height=128, width=128, latents=start,
                output_type="latent", **more).images


def test_it_runs_in_diffusers_pipeline_as_ddim_does(tiny_pipe):
    ours, theirs = picture(tiny_pipe, ddim_scheduler()), picture(tiny_pipe, parts.scheduler())
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert torch.equal(ours, picture(tiny_pipe, ddim_scheduler()))


def test_a_scheduler_that_is_saved_comes_back_the_same(tiny_pipe, tmp_path):
    own = ddim_scheduler(guidance=3.0, weights="00")
    own.save_pretrained(tmp_path)
    back = OLSSScheduler.from_pretrained(tmp_path)
    assert dict(back.config) == dict(own.config) and back.order == 1 and back.init_noise_sigma == 1 and len(back) == 1000
    pipe = StableDiffusionPipeline(**{**tiny_pipe.components, "scheduler": own}, requires_safety_checker=False)
    pipe.save_pretrained(tmp_path / "pipe")
    whole = StableDiffusionPipeline.from_pretrained(tmp_path / "pipe", local_files_only=True)
    assert type(whole.scheduler) is OLSSScheduler and whole.scheduler.config.we == own.config.we
    assert torch.equal(picture(tiny_pipe, back), picture(tiny_pipe, own))


@pytest.mark.parametrize("dtype", (torch.half, torch.bfloat16, torch.float))
def test_latents_keep_their_type_and_sums_are_float32(dtype):
    scheduler = ddim_scheduler(4)
    x, es = torch.randn(2, 4, 8, 8).to(dtype), torch.randn(4, 2, 4, 8, 8).to(dtype)
    sample = x
    for i, t in enumerate(scheduler.timesteps):
        assert scheduler.scale_model_input(sample, t) is sample
        sample = scheduler.step(es[i], t, sample).prev_sample
        exact = scheduler.config.wx[i] * x.double() + sum(w * e for w, e in zip(scheduler.config.we[i], es.double()))
        assert sample.dtype == dtype
        torch.testing.assert_close(sample.double(), exact.to(dtype).double(), rtol=2e-2 if dtype != torch.float else 1e-5, atol=1e-4)


def test_runs_of_another_kind_are_refused():
    scheduler = OLSSScheduler.from_config(ddim_scheduler().config)
    x = torch.zeros(1, 4, 2, 2)
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(x, 999, x)
    with pytest.raises(ValueError, match="for 4 steps, not 5"):
        scheduler.set_timesteps(5)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="pure noise"):
        scheduler.step(x, scheduler.timesteps[1], x)
    for t in scheduler.timesteps:
        scheduler.step(x, t, x)
    with pytest.raises(ValueError, match="new run"):
        scheduler.step(x, 0, x)
    scheduler.set_timesteps(4)
    assert scheduler.step(x, 999, x, return_dict=False)[0].shape == x.shape


def test_a_run_may_end_at_the_first_timestep():
    plain = {name: value for name, value in ddim_scheduler().config.items() if not name.startswith("_")}
    assert OLSSScheduler(**plain | {"timesteps": [999, 9, 8, 0]}).config.timesteps[-1] == 0


@pytest.mark.parametrize("change, said", (
    ({"timesteps": []}, "whole numbers"), ({"timesteps": [999, 700, 700, 3]}, "fall"), ({"timesteps": [1000, 9, 8, 7]}, "999"),
    ({"timesteps": [999.0, 9, 8, 7]}, "whole"), ({"wx": [1.0]}, "need 4 wx"), ({"we": [[1.0]] * 4}, "rows of 1 to 4"),
    ({"wx": [1.0, 2.0, float("nan"), 1.0]}, "finite"), ({"wx": [1.0, 2.0, "x", 1.0]}, "finite"), ({"prediction_type": "v_prediction"}, "noise"),
))
def test_what_are_no_coefficients_is_named(change, said):
    with pytest.raises(ValueError, match=said):
        OLSSScheduler(**{**{name: value for name, value in ddim_scheduler().config.items() if not name.startswith("_")}, **change})


# The network step by step

def request_of(**told):
    return Request("a cat on the beach", **{"seed": 11, "steps": 5, "size": 128, "methods": "full"} | told)


@pytest.mark.parametrize("guidance", (1.0, 3.0))
def test_a_walk_is_the_pipelines_own_run(tiny_pipe, guidance):
    request = request_of(guidance=guidance)
    run, network = generate(tiny_pipe, request, request.methods[0], 5), Network(tiny_pipe, [request])
    latents = runs.end(solvers.reference(CONFIG, 5), network)
    assert torch.equal(latents, run.latents) and network.calls == 5
    assert pictures(tiny_pipe, latents)[0].tobytes() == run.image.tobytes()


def test_runs_side_by_side_are_those_one_by_one(tiny_pipe):
    asked = [request_of(seed=seed) for seed in (1, 2)]
    both = runs.end(solvers.reference(CONFIG, 4), Network(tiny_pipe, asked))
    for one, alone in zip(both, asked):
        torch.testing.assert_close(one[None], runs.end(solvers.reference(CONFIG, 4), Network(tiny_pipe, [alone])), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", (7, 300))
def test_a_full_run_has_whole_strides(steps):
    with pytest.raises(BadRequest, match="must divide 1000"):
        solvers.reference(CONFIG, steps)
    with pytest.raises(BadRequest, match="predicts v_prediction"):
        solvers.reference({**CONFIG, "prediction_type": "v_prediction"}, 100)


# The method

@pytest.fixture
def home(tiny_pipe, olss_files, tmp_path):
    """The tiny pipeline in a folder of this test's own, with the coefficients beside it: 4 and 10 steps at guidance 3."""
    shutil.copytree(olss_files, tmp_path / "stickers" / "olss")
    with at_home(tiny_pipe, tmp_path / "stickers" / "model") as folder:
        yield folder


def attached(pipe, steps=4, knobs=olss.Knobs(), **told):
    request = request_of(**{"guidance": 3.0} | told)
    context = context_of(pipe, request, steps, (16, 16))
    with olss.attach(pipe, knobs, context) as ready:
        return ready.scheduler, context


def test_the_method_brings_the_coefficients_of_its_file(tiny_pipe, home):
    own, path = tiny_pipe.scheduler, olss.path_of(home, "olss", 4, 3.0)
    scheduler, context = attached(tiny_pipe)
    told = json.loads(path.read_text())
    assert tiny_pipe.scheduler is own and type(scheduler) is OLSSScheduler
    assert scheduler.config.wx == told["wx"] and scheduler.config.fitted["weights"] == fitted.weights(home)
    assert context.acted["olss"] == {("scheduler", step) for step in range(4)}
    assert OLSSScheduler.from_pretrained(path).config.we == told["we"]


@pytest.mark.parametrize("steps, search, guidance, command", (
    (7, "olss", 3.0, "--steps 7 --guidance 3`"), (4, "olss", 7.5, "--steps 4 --guidance 7.5`"),
    (4, "olss-p", 3.0, "--steps 4 --guidance 3 --search olss-p`")))
def test_what_no_file_fits_is_refused_with_the_command_that_helps(tiny_pipe, home, steps, search, guidance, command):
    with pytest.raises(Refused) as told:
        attached(tiny_pipe, steps, olss.Knobs(search=search), guidance=guidance)
    there = "choose 4, 10 steps, or " if steps == 7 else ""
    assert f"There are no coefficients stickers/olss/{search}-{steps}-guidance-{guidance:g}.json: {there}make" in str(told.value)
    assert f"`python -m fastviz fit olss --model stickers {command}" in str(told.value)


def test_a_model_without_a_folder_has_no_coefficients_and_runs_neutral_knobs(tiny_pipe):
    with pytest.raises(Refused, match="this model has none"):
        attached(tiny_pipe)
    assert attached(tiny_pipe, knobs=olss.NEUTRAL)[0] is tiny_pipe.scheduler


def test_a_file_made_for_something_else_is_refused(tiny_pipe, home):
    path = olss.path_of(home, "olss", 4, 3.0)
    told = json.loads(path.read_text())

    def refused(content):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(Refused) as error:
            attached(tiny_pipe)
        said = str(error.value)
        assert "python -m fastviz fit olss --model stickers --steps 4 --guidance 3`" in said and "\n" not in said
        return said

    for name, value, what in (("guidance", 2.0, "another guidance"), ("weights", "0" * 64, "other weights"), ("weights", None, "other weights")):
        assert what in refused({**told, "fitted": {**told["fitted"], name: value}})
    for broken in ("", "[]", "{", "null", {**told, "fitted": None}, {**told, "fitted": {}}, {**told, "wx": told["wx"][:2]},
                   {"timesteps": [999]}, {**told, "we": 3}, {**told, "timesteps": None}):
        assert "cannot be read" in refused(broken)
    assert "holds 10 steps, not 4" in refused(olss.path_of(home, "olss", 10, 3.0).read_text())
    path.write_text(json.dumps({**told, "beta_end": 0.02}))
    with pytest.raises(Refused, match="another noise schedule"):
        attached(tiny_pipe)
    path.write_text(json.dumps(told))
    assert attached(tiny_pipe)[0].config.wx == told["wx"]


def strangers(folder, own):
    """Files of coefficients beside a model's folder that no run with its scheduler would take, with the reason."""
    found = {}
    for path in sorted((folder.parent / "olss").glob("*.json")):
        (search, steps), guidance = path.stem.partition("-guidance-")[0].rsplit("-", 1), path.stem.partition("-guidance-")[2]
        try:
            olss.fits(olss.load(folder, search, int(steps), float(guidance)), own)
        except Refused as refusal:
            found[path.name] = str(refusal)
    return found


@pytest.mark.parametrize("model", [model for model in models.MODELS.values() if model.source], ids=lambda model: model.key)
def test_coefficients_that_are_shipped_belong_to_the_weights_that_are_shipped(model):
    """All numbers of steps that README tells of, each with what was measured of it and of its rivals."""
    assert strangers(model.folder, DDIMScheduler.from_pretrained(model.folder, subfolder="scheduler")) == {}
    for (search, name), n in itertools.product({"olss": "OLSS", "olss-p": "OLSS-P"}.items(), (4, 5, 6, 8, 10, 20)):
        path = olss.path_of(model.folder, search, n, model.guidance)
        told = json.loads(path.read_text())
        assert len(told["timesteps"]) == n and {name, "DDIM", "UniPC"} < told["fitted"]["measured"].keys(), path.name


def test_coefficients_that_were_left_behind_by_new_weights_are_found(tiny_pipe, home):
    assert strangers(home, tiny_pipe.scheduler) == {} and len(list((home.parent / "olss").iterdir())) == 2
    path = olss.path_of(home, "olss", 10, 3.0)
    path.write_text(path.read_text().replace(fitted.weights(home), "0" * 64))
    assert list(found := strangers(home, tiny_pipe.scheduler)) == [path.name] and "other weights" in found[path.name]
    weights = next(home.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    found = strangers(home, tiny_pipe.scheduler)
    assert len(found) == 2 and all("other weights" in said for said in found.values())


@pytest.fixture
def page(tiny_pipe, home, monkeypatch):
    """The tiny pipeline in the place of the embedded model, nothing warm."""
    monkeypatch.setitem(models._loaded, "stickers", tiny_pipe)
    monkeypatch.setattr(compare, "warmed", {})


def test_a_comparison_runs_it_alone_and_in_a_stack_and_says_what_is_missing(page):
    request = request_of(guidance=3.0, repeats=1, methods="olss,tome+olss(steps=4),olss(steps=3),attention_reuse(schedule=1100)+olss(steps=4)")
    full, alone, stack, missing, reuse = compare.final(compare.compare(request))
    assert full.error is alone.error is stack.error is reuse.error is None
    assert (alone.steps, stack.steps, reuse.steps) == (10, 4, 4) and alone.applied and stack.applied
    assert alone.flops == pytest.approx(full.flops * 10 / 5, rel=0.1) and alone.metrics["ssim"] < 1
    assert "--steps 3 --guidance 3`" in missing.error and missing.image is None


def test_a_stack_holds_one_scheduler():
    with pytest.raises(BadRequest, match="two schedulers"):
        request_of(methods="few_step+olss")


def test_a_traced_run_tells_what_was_added_up(tiny_pipe, home):
    request, trace = request_of(guidance=3.0), Trace()
    run = generate(tiny_pipe, request, (olss.Knobs(steps=4),), 4, trace=trace)
    assert torch.equal(run.latents, generate(tiny_pipe, request, (olss.Knobs(steps=4),), 4).latents)
    terms, gaps = trace.channels["olss.terms"], trace.channels["olss.from_ddim"]
    assert [terms[step, "scheduler"].shape for step in range(4)] == [(2,), (3,), (4,), (5,)] and len(gaps) == 4
    scheduler, _ = attached(tiny_pipe)
    start = Network(tiny_pipe, [request]).start
    assert terms[0, "scheduler"][0] == pytest.approx(abs(scheduler.config.wx[0]) * float(start.square().mean().sqrt()), rel=1e-5)
    assert all(gap > 1e-4 for gap in gaps.values())


def test_ddims_coefficients_are_no_distance_from_ddim(tiny_pipe, home):
    path = olss.path_of(home, "olss", 4, 3.0)
    told = json.loads(path.read_text())
    told["wx"], told["we"] = ddim(alphas_of(CONFIG, told["timesteps"]))
    path.write_text(json.dumps(told))
    generate(tiny_pipe, request_of(guidance=3.0), (olss.Knobs(steps=4),), 4, trace=(trace := Trace()))
    assert max(trace.channels["olss.from_ddim"].values()) < 1e-4
