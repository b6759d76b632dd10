"""Compiled by torch.compile, a network with methods is one graph for each kind of step, and gives what it gave before."""

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler
from torch._dynamo.testing import CompileCounter

from fastviz import gwpr
from fastviz.bench import lanes
from fastviz.cost import kinds
from fastviz.methods import METHODS, attached, attention_reuse
from fastviz.patch import Refused
from fastviz.request import parse_stack
from fastviz.trace import Context

STEPS = 4
PATCHES = [method.KEY for method in METHODS if method.ROLE == "patch" and method.PAPER]
STACKS = ("attention_reuse", "tome", "atedm(tau=0,every=2)", "attention_reuse(schedule=1010,keep=output)", "tome(share=true,every=2,merge_mlp=true)",
          "atedm(recover=previous,map=fused,every=2,tau=0)",
          "tome+attention_reuse(schedule=1101)+atedm(every=2,tau=0,score=cross,recover=own,rounds=3)")


@pytest.fixture(scope="module")
def pipe():
    """A U-Net of one resolution and six transformer blocks: compiling takes its time."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(16,), norm_num_groups=4, mid_block_type=None,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
        attention_head_dim=2, transformer_layers_per_block=2, cross_attention_dim=24)
    return SimpleNamespace(unet=unet.eval().requires_grad_(False))


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


@torch.no_grad()
def outputs(pipe, stack, backend=None):
    """(noise predictions of all steps, what Context.start told of each); compiled as one graph where there is a backend."""
    draw, context = torch.Generator().manual_seed(9), Context(STEPS, grid=(8, 8))
    x, text, found, told = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 7, 24, generator=draw), [], []
    with attached(pipe, stack, context) as ready:
        forward = ready.unet.forward
        run = torch.compile(forward, backend=backend, fullgraph=True, dynamic=False) if backend else forward
        for step in range(STEPS):
            told.append(context.start(step))
            found.append(run(x + step / 10, torch.tensor(500 - step), text).sample)
    return found, told, context


@pytest.mark.parametrize("text", STACKS)
def test_one_graph_for_each_kind_of_step_and_the_same_output(pipe, text, monkeypatch):
    stack, counter = parse_stack(text), CompileCounter()
    expected, _, eager = outputs(pipe, stack)
    monkeypatch.setattr(attention_reuse.models, "free_memory", lambda device: 1.0)  # which a compiled network does not ask about
    found, told, compiled = outputs(pipe, stack, counter)
    assert [torch.equal(a, b) for a, b in zip(found, expected, strict=True)] == [True] * STEPS
    assert counter.frame_count == len(set(told)) <= len(set(kinds(stack, STEPS)))
    assert compiled.acted == eager.acted and eager.acted


SCHEDULERS = {"ddim": DDIMScheduler, "dpm": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler, "euler": EulerDiscreteScheduler}


@pytest.mark.parametrize("text, kind", [("full", kind) for kind in SCHEDULERS] + [(text, "ddim") for text in STACKS] + [("full", "olss")])
@torch.no_grad()
def test_as_experts_run_it_nothing_is_compiled_after_the_first_step_of_each_kind(pipe, text, kind):
    """Repeated blocks compiled and projections fused, at the timesteps that each scheduler really gives."""
    ready, counter = copy.deepcopy(pipe), CompileCounter()
    if kind == "olss":
        times, scale = torch.tensor([999, 749, 499, 249]), lambda x, t: x
    else:
        scheduler = SCHEDULERS[kind]()
        scheduler.set_timesteps(STEPS)
        times, scale = scheduler.timesteps, scheduler.scale_model_input
    draw, stack, context = torch.Generator().manual_seed(9), parse_stack(text), Context(STEPS, grid=(8, 8))
    x, words, counts = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 7, 24, generator=draw), {}
    with lanes.expert(ready.unet, text, counter), attached(ready, stack, context):
        for step, t in enumerate(times):
            kind, before = context.start(step), counter.frame_count
            ready.unet(scale(x + step / 10, t), t, words)
            counts.setdefault(kind, []).append(counter.frame_count - before)
    assert all(more == 0 for each in counts.values() for more in each[1:]), counts
    assert counter.frame_count > 0


def test_a_similarity_floor_says_why_it_is_not_compiled(pipe):
    ready = copy.deepcopy(pipe)
    with lanes.expert(ready.unet, "tome(floor=0.5)", "eager"), pytest.raises(Refused, match="leave the floor at -1"):
        with attached(ready, parse_stack("tome(floor=0.5)"), Context(STEPS, grid=(8, 8))):
            pass


def test_all_that_edit_the_pipeline_are_compiled_here():
    assert all(any(key in text for text in STACKS) for key in PATCHES)


def test_rounds_after_the_last_that_counts_change_nothing(monkeypatch):
    """What a compiled network and a GPU do in place of stopping: bit for bit the same."""
    draw = torch.Generator().manual_seed(3)
    graph = gwpr.Held(*torch.randn(2, 1, 2, 24, 8, generator=draw))
    made = []
    monkeypatch.setattr(gwpr, "settled", lambda given: made.append(1) or given.sum(2))
    stopped = gwpr.rank(graph, 50, 1e-3)
    assert 2 < len(made) < 50
    monkeypatch.setattr(gwpr, "stops", lambda s: False)
    made.clear()
    assert torch.equal(gwpr.rank(graph, 50, 1e-3), stopped) and len(made) == 50
    assert not torch.equal(gwpr.rank(graph, 50, 0.0), stopped)


def test_a_step_must_be_started(pipe):
    draw = torch.Generator().manual_seed(9)
    for text in PATCHES:
        with attached(pipe, parse_stack(text), Context(STEPS, grid=(8, 8))), pytest.raises(AttributeError):
            pipe.unet(torch.randn(2, 4, 8, 8, generator=draw), 500, encoder_hidden_states=torch.zeros(2, 7, 24))
