"""Attention reuse against diffusers' own attention, an explicit slow loop, and the paper's formulas."""

import itertools

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fastviz.methods import attached, attention_reuse, few_step, tome
from fastviz.patch import Refused, replaced, transformer_blocks
from fastviz.request import BadRequest, Request
from fastviz.trace import Context, Trace

Knobs = attention_reuse.Knobs


# The schedule

@given(st.integers(1, 100), st.integers(0, 120))
def test_hurry_reuses_the_last_k(steps, k):
    gamma = attention_reuse.hurry(steps, k)
    assert len(gamma) == steps and gamma[0] == 1 and gamma.count(0) == min(k, steps - 1)
    assert list(gamma) == sorted(gamma, reverse=True)


@given(st.lists(st.integers(0, 1), max_size=30))
def test_a_step_uses_the_last_one_that_computed(tail):
    gamma = (1, *tail)
    assert attention_reuse.sources(gamma) == tuple(max(k for k in range(i + 1) if gamma[k]) for i in range(len(gamma)))
    used = {j for i, j in enumerate(attention_reuse.sources(gamma)) if not gamma[i]}
    assert {i for i, kept in enumerate(attention_reuse.stored(gamma)) if kept} == used


@pytest.mark.parametrize("schedule", ("0111", "12", "1 0", "1O0", "1１"))
def test_a_schedule_that_cannot_be_read_is_refused(schedule):
    with pytest.raises(BadRequest, match="ones and zeros"):
        Request("a cat", methods=((Knobs(schedule=schedule),),))


def test_a_schedule_for_another_number_of_steps_is_refused(tiny_pipe):
    with pytest.raises(Refused, match="4 digits and the run 5 steps"):
        with attention_reuse.attach(tiny_pipe, Knobs(schedule="1000"), Context(5)):
            pass


# The arithmetic

ATTENTIONS = {
    "SD 1.5 self": dict(),
    "SD 1.5 cross": dict(cross_attention_dim=20),
    "with bias and other inner width": dict(bias=True, dim_head=12),
    "group norm, residual, rescaled": dict(norm_num_groups=4, residual_connection=True, rescale_output_factor=1.5),
    "normalised queries and keys": dict(qk_norm="layer_norm"),
    "normalised text": dict(cross_attention_dim=20, cross_attention_norm="layer_norm"),
}


@pytest.mark.parametrize("masked", (False, True))
@pytest.mark.parametrize("told", ATTENTIONS.values(), ids=ATTENTIONS)
def test_the_two_halves_are_diffusers_attention(told, masked):
    torch.manual_seed(0)
    attn = Attention(query_dim=32, **{"heads": 4, "dim_head": 8, **told}, processor=AttnProcessor2_0()).double().eval()
    x = torch.randn(2, 30, 32, dtype=torch.double)
    text = torch.randn(2, 7, 20, dtype=torch.double) if attn.is_cross_attention else None
    keys = 30 if text is None else 7
    mask = torch.randn(2, 1, keys, dtype=torch.double) if masked else None
    with torch.no_grad():
        weights = attention_reuse.attention_map(attn, x, text, mask)
        assert weights.shape == (2, 4, 30, keys)
        torch.testing.assert_close(attention_reuse.apply_map(attn, weights, x, text), attn(x, text, mask))


class SlowReuse:
    """Equation by equation, one head and one batch entry at a time, with a dictionary of maps."""

    def __init__(self, gamma, clock):
        self.gamma, self.clock, self.maps = gamma, clock, {}

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        out = torch.zeros(*hidden_states.shape[:2], attn.inner_dim)
        width = attn.inner_dim // attn.heads
        for b, h in itertools.product(range(len(hidden_states)), range(attn.heads)):
            rows = slice(h * width, (h + 1) * width)
            if self.gamma[self.clock.step]:
                q, k = hidden_states[b] @ attn.to_q.weight[rows].T, source[b] @ attn.to_k.weight[rows].T
                self.maps[b, h] = torch.softmax(q @ k.T / width ** 0.5, 1)
            out[b, :, rows] = self.maps[b, h] @ (source[b] @ attn.to_v.weight[rows].T)
        return out @ attn.to_out[0].weight.T + attn.to_out[0].bias


def denoise(pipe, context, on_step=lambda step: None):
    """A DDIM loop with guidance 3 around bare calls of the network: latents (1, 4, 16, 16)."""
    draw = torch.Generator().manual_seed(9)
    latents, text = torch.randn(1, 4, *context.grid, generator=draw), torch.randn(2, 24, 32, generator=draw)
    pipe.scheduler.set_timesteps(context.steps)
    with torch.no_grad():
        for step, t in enumerate(pipe.scheduler.timesteps):
            context.start(step)
            on_step(step)
            without, given = pipe.unet(latents.repeat(2, 1, 1, 1), t, encoder_hidden_states=text).sample.chunk(2)
            latents = pipe.scheduler.step(without + 3 * (given - without), t, latents).prev_sample
    return latents


def run(pipe, stack, steps, **told):
    context = Context(steps, seed=3, grid=(16, 16), **told)
    with attached(pipe, stack, context) as ready:
        return denoise(ready, context), context


@pytest.mark.parametrize("schedule", ("1000", "1101", "10010"))
def test_map_reuse_equals_the_slow_loop(tiny_pipe, schedule):
    context = Context(len(schedule), grid=(16, 16))
    attentions = [attn for _, attn, _ in attention_reuse.attentions(tiny_pipe.unet, (16, 16), "both")]
    before = [attn.processor for attn in attentions]
    try:
        for attn in attentions:
            attn.processor = SlowReuse(tuple(map(int, schedule)), context)
        slow = denoise(tiny_pipe, context)
    finally:
        for attn, processor in zip(attentions, before):
            attn.processor = processor
    fast, _ = run(tiny_pipe, (Knobs(schedule=schedule),), len(schedule))
    full, _ = run(tiny_pipe, (attention_reuse.NEUTRAL,), len(schedule))
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)
    assert (fast - full).abs().max() > 1e-3


def projections(pipe, knobs, steps):
    """(step, layer, projection) -> how often it ran, per layer of the network."""
    counts, hooks, now = {}, [], [0]
    for name, attn, _ in attention_reuse.attentions(pipe.unet, (16, 16), "both"):
        for part in ("to_q", "to_k", "to_v"):
            def count(module, args, out, key=(name, part)):
                counts[now[0], *key] = counts.get((now[0], *key), 0) + 1
            hooks.append(getattr(attn, part).register_forward_hook(count))
    context = Context(steps, grid=(16, 16))
    try:
        with attention_reuse.attach(pipe, knobs, context) as ready:
            denoise(ready, context, on_step=lambda step: now.__setitem__(0, step))
    finally:
        for hook in hooks:
            hook.remove()
    return counts, context


@pytest.mark.parametrize("maps", ("self", "cross", "both"))
@pytest.mark.parametrize("keep", ("map", "output"))
def test_the_schedule_is_honoured_in_every_layer(tiny_pipe, maps, keep):
    counts, context = projections(tiny_pipe, Knobs(schedule="11001", maps=maps, keep=keep), 5)
    layers = attention_reuse.attentions(tiny_pipe.unet, (16, 16), "both")
    assert len(layers) == 30
    for (name, _, part), step in itertools.product(layers, range(5)):
        reuses = step in (2, 3) and maps in (part, "both")
        found = tuple(counts.get((step, name, projection), 0) for projection in ("to_q", "to_k", "to_v"))
        values = int(keep == "map" and part == "self")
        assert found == ((0, 0, values) if reuses else (1, 1, 1))
    acted = {(name, step) for name, _, part in layers for step in (2, 3) if maps in (part, "both")}
    assert context.acted["attention_reuse"] == acted


@pytest.mark.parametrize("maps, keep", (("self", "map"), ("cross", "map"), ("both", "output")))
def test_steps_before_the_first_reuse_are_the_full_models(tiny_pipe, maps, keep):
    """Up to the step that stores, the production kernel gives the output: bit for bit. A step that keeps a map makes its
    output from it, which is equal up to rounding; one that keeps outputs is equal as well."""
    seen = {}
    for schedule in ("1111", "1110"):
        found = seen[schedule] = []
        hook = tiny_pipe.unet.register_forward_hook(lambda module, args, out: found.append(out.sample))
        run(tiny_pipe, (Knobs(schedule=schedule, maps=maps, keep=keep),), 4)
        hook.remove()
    equal = [torch.equal(a, b) for a, b in zip(*seen.values())]
    assert equal == [True, True, maps != "self", False]
    torch.testing.assert_close(seen["1111"][2], seen["1110"][2], rtol=1e-4, atol=1e-5)


def test_a_reused_cross_map_gives_the_same_output_at_every_step(tiny_pipe):
    """Why the output is kept in its place: A and V = W_v text are the same. Bit for bit."""
    _, attn, _ = next(one for one in attention_reuse.attentions(tiny_pipe.unet, (16, 16), "cross"))
    draw = torch.Generator().manual_seed(0)
    text = torch.randn(2, 24, 32, generator=draw)
    first, *later = (torch.randn(2, 256, 32, generator=draw) for _ in range(3))
    with torch.no_grad():
        weights = attention_reuse.attention_map(attn, first, text)
        kept = attention_reuse.apply_map(attn, weights, first, text)
        assert all(torch.equal(attention_reuse.apply_map(attn, weights, x, text), kept) for x in later)
        torch.testing.assert_close(kept, attn(first, text))


def test_a_cross_attention_with_a_residual_keeps_its_map(tiny_pipe):
    _, attn, _ = next(one for one in attention_reuse.attentions(tiny_pipe.unet, (16, 16), "cross"))
    kinds = {traced: attention_reuse.processor(attn, Knobs(), traced) for traced in (False, True)}
    assert kinds == {False: attention_reuse.OutputReuse, True: attention_reuse.RecordedCrossReuse}
    with replaced(attn, residual_connection=True):
        kinds = {traced: attention_reuse.processor(attn, Knobs(), traced) for traced in (False, True)}
    assert kinds == {False: attention_reuse.MapReuse, True: attention_reuse.RecordedMapReuse}


# Cost

@pytest.mark.parametrize("maps", ("self", "cross"))
@pytest.mark.parametrize("keep", ("map", "output"))
def test_executed_flops_fall_by_the_formula(tiny_pipe, maps, keep):
    from fastviz.cost import on_meta

    steps, per_step = 3, []
    n_of = {name: h * w for name, _, (h, w) in transformer_blocks(tiny_pipe.unet, (16, 16))}
    with on_meta(tiny_pipe) as bare:
        context = Context(steps, grid=(16, 16))
        latents, t = torch.empty(2, 4, 16, 16, device="meta"), torch.empty((), dtype=torch.long, device="meta")
        with attention_reuse.attach(bare, Knobs(schedule="110", maps=maps, keep=keep), context), torch.no_grad():
            for step in range(steps):
                context.start(step)
                with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                    bare.unet(sample=latents, timestep=t, encoder_hidden_states=torch.empty(2, 24, 32, device="meta"))
                per_step.append(counter.get_total_flops())
    c, m, d, skipped = 32, 24, 32, 0
    for name, _, part in attention_reuse.attentions(tiny_pipe.unet, (16, 16), maps):
        n = n_of[name.rpartition(".")[0]]
        half = 2 * n * c * c + n * n * c if part == "self" else n * c * c + m * c * d + n * m * c
        skipped += 2 * 2 * half * (2 if keep == "output" or part == "cross" else 1)
    assert per_step[0] - per_step[2] == skipped
    assert per_step[1] == per_step[0]  # so all schedules that reuse equally often are as much work


@pytest.mark.parametrize("keep", ("map", "output"))
def test_kept_bytes_are_what_is_kept(tiny_pipe, keep):
    context = Context(2, grid=(16, 16))
    with attention_reuse.attach(tiny_pipe, Knobs(keep=keep), context) as pipe:
        denoise(pipe, context)
        kept = [attn.processor.kept for _, attn, _ in attention_reuse.attentions(pipe.unet, (16, 16), "both")]
    assert context.kept_bytes["attention_reuse"] == sum(one.nbytes for one in kept) > 0


def test_what_does_not_fit_is_refused_in_the_first_step(tiny_pipe, monkeypatch):
    monkeypatch.setattr(attention_reuse.models, "free_memory", lambda device: 3e6)
    context = Context(4, grid=(16, 16))
    with pytest.raises(Refused, match="keep the output"):
        with attention_reuse.attach(tiny_pipe, Knobs(), context) as pipe:
            denoise(pipe, context)
    assert context.step == 0
    run(tiny_pipe, (Knobs(keep="output"),), 4)


# Attaching

def test_no_reuse_leaves_every_processor_alone(tiny_pipe):
    before = tiny_pipe.unet.attn_processors
    with attention_reuse.attach(tiny_pipe, attention_reuse.NEUTRAL, context := Context(4)) as pipe:
        assert all(pipe.unet.attn_processors[name] is processor for name, processor in before.items())
    assert not context.frozen


def test_other_attention_is_refused(tiny_pipe):
    attn = next(attn for _, attn, _ in attention_reuse.attentions(tiny_pipe.unet, (16, 16), "self"))
    with replaced(attn, processor=object()), pytest.raises(Refused, match="uses object"):
        with attention_reuse.attach(tiny_pipe, Knobs(), Context(4)):
            pass


@pytest.mark.parametrize("maps", ("self", "cross", "both"))
def test_frozen_names_the_steps_and_parts_that_reuse(tiny_pipe, maps):
    context = Context(4)
    context.frozen = {(3, "self")}
    with attention_reuse.attach(tiny_pipe, Knobs(maps=maps), context):
        reused = {(step, part) for step in (2, 3) for part in ("self", "cross") if maps in (part, "both")}
        assert context.frozen == {(3, "self")} | reused
    assert context.frozen == {(3, "self")}


@pytest.mark.parametrize("keep", ("map", "output"))
def test_the_trace_tells_age_and_staleness(tiny_pipe, keep):
    _, context = run(tiny_pipe, (Knobs(schedule="10110", keep=keep),), 5, trace=Trace())
    ages, stale = (context.trace.channels[f"attention_reuse.{name}"] for name in ("age", "staleness"))
    assert len(ages) == 5 * 30 and {step: {int(ages[key]) for key in ages if key[0] == step} for step in range(5)} == {
        0: {0}, 1: {1}, 2: {0}, 3: {0}, 4: {1}}
    assert {step for step, _ in stale} == {1, 4} and all(0 < value < 2 for value in stale.values())


def test_the_trace_tells_where_attention_has_moved(tiny_pipe):
    """Against a run that computes the same two maps: the first steps of both are equal."""
    name, attn, _ = next(one for one in attention_reuse.attentions(tiny_pipe.unet, (16, 16), "self"))
    seen = []

    class Seen:
        def __call__(self, attn, x, **others):
            seen.append(attention_reuse.attention_map(attn, x))
            return before(attn, x, **others)

    before = attn.processor
    with replaced(attn, processor=Seen()):
        run(tiny_pipe, (), 2)
    slow = torch.zeros(16, 16)
    for query in range(256):
        for head in range(2):
            now, then = (one[-1, head, query] for one in reversed(seen))
            slow[query // 16, query % 16] += (now - then).abs().sum() / 2 / 2
    _, context = run(tiny_pipe, (Knobs(schedule="10", maps="self"),), 2, trace=Trace())
    told = context.trace.channels["attention_reuse.moved"]
    assert told[1, name].dtype == np.float16 and {step for step, _ in told} == {1}
    np.testing.assert_allclose(told[1, name], slow, atol=2e-3)
    assert 0 < told[1, name].max() <= 1


def test_the_trace_tells_where_a_kept_output_has_changed(tiny_pipe):
    name, attn, _ = next(one for one in attention_reuse.attentions(tiny_pipe.unet, (16, 16), "cross"))
    outputs = []
    hook = attn.register_forward_hook(lambda module, args, out: outputs.append(out[-1].numpy()))
    run(tiny_pipe, (), 2)
    hook.remove()
    then, now = outputs
    slow = [np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in zip(now, then)]
    _, context = run(tiny_pipe, (Knobs(schedule="10", maps="cross", keep="output"),), 2, trace=Trace())
    told = context.trace.channels["attention_reuse.moved"][1, name]
    np.testing.assert_allclose(told, np.reshape(slow, (16, 16)), rtol=5e-3)


def test_where_is_not_told_of_tokens_that_were_merged(tiny_pipe):
    quarter = tome.Knobs(ratio=0.75)  # what is left of 16 x 16 is as many as 8 x 8
    _, context = run(tiny_pipe, (quarter, Knobs(schedule="10")), 2, trace=Trace())
    moved = {layer for _, layer in context.trace.channels["attention_reuse.moved"]}
    merged = {f"{layer}.attn1" for _, layer in context.trace.channels["tome.labels"]}
    assert merged and moved == {layer for _, layer in context.trace.channels["attention_reuse.age"]} - merged


# Stacks

def without_freezing(pipe, stack, steps, **told):
    """The same stack, but merging does not hear which steps reuse."""
    context = Context(steps, seed=3, grid=(16, 16), **told)
    with attached(pipe, stack, context) as ready:
        context.frozen.clear()
        return denoise(ready, context)


@pytest.mark.parametrize("keep", ("map", "output"))
def test_stacked_maps_meet_the_tokens_that_they_were_made_with(tiny_pipe, keep):
    reuse, merge = Knobs(schedule="1000", keep=keep), tome.Knobs()
    one, _ = run(tiny_pipe, (merge, reuse), 4)
    other, _ = run(tiny_pipe, (reuse, merge), 4)
    held = without_freezing(tiny_pipe, (tome.Knobs(every=4), reuse), 4)  # the first step's match, held by hand
    wrong = without_freezing(tiny_pipe, (merge, reuse), 4)
    assert torch.equal(one, other) and torch.equal(one, held)
    assert (one - wrong).abs().max() > 1e-3


def test_stacked_assignments_are_those_of_the_step_that_computed(tiny_pipe):
    _, context = run(tiny_pipe, (tome.Knobs(), Knobs(schedule="110100")), 6, trace=Trace())
    labels = context.trace.channels["tome.labels"]
    for (step, name), labelled in labels.items():
        source = attention_reuse.sources((1, 1, 0, 1, 0, 0))[step]
        assert (labelled == labels[source, name]).all()
        if step in (1, 3):  # computes: a new draw
            assert (labelled != labels[step - 1, name]).any()


def test_stacks_with_a_scheduler_count_its_steps(tiny_pipe):
    _, context = run(tiny_pipe, (few_step.Knobs(steps=4), Knobs()), 4)
    assert {step for _, step in context.acted["attention_reuse"]} == {2, 3} and len(context.acted["few_step"]) == 4
