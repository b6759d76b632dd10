"""The ways to run a network that the GPU benchmark times: our stacks, peers, and the expert's settings."""

import os
from collections import Counter
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from importlib import import_module
from statistics import median
from types import SimpleNamespace
from typing import Callable, NamedTuple

import torch

from ..cost import Flops, kinds, with_past
from ..methods import attached, few_step
from ..request import parse_stack
from ..run import Clock
from ..schedulers import OLSSScheduler, alphas_of, ddim
from ..trace import Context
from .networks import inputs, unet_of

PEER_STEPS = 6  # a multiple of every peer's period
TIMED = 5  # times that a kind of step is timed
TOP = 12  # lines of a profile
SCHEDULE = dict(num_train_timesteps=1000, set_alpha_to_one=False, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


@contextmanager
def expert(unet, stack, backend):
    """channels_last, fused Q K V projections where the stack allows it, repeated blocks compiled. The network is not the
    same afterwards."""
    unet.to(memory_format=torch.channels_last)
    if "attention_reuse" not in stack:  # which knows the standard processors alone
        unet.fuse_qkv_projections()
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=256, accumulated_recompile_limit=4096):
        unet.compile_repeated_blocks(backend=backend, fullgraph=True, dynamic=False)
        yield


def predict(unet, told, **other):
    """The network's output; its first two arguments by position: tomesd asks for the one, DeepCache for the other."""
    told = told | other
    return unet(told.pop("sample"), told.pop("timestep"), **told).sample


def recorded(call, device):
    """`call` as a CUDA graph, after it ran on a stream of its own; as it is on other devices. What it gives is overwritten by
    the next call."""
    if device.type != "cuda":
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def again():
        graph.replay()
        return kept
    return again


def seconds_of(call, device, times=TIMED):
    """Median seconds, after one call that warms up."""
    call()
    clock = Clock(device)
    for _ in range(times):
        clock.mark()
        call()
        clock.mark()
    return sorted(clock.spans())[times // 2]


def starts(unet, stack, steps, grid, device):
    """Median seconds that a step's start takes, by kind of step: they are timed for all steps in order, without the network,
    because a single one would be a cold one."""
    context, clock = Context(steps, grid=grid, device=device.type), Clock(device)
    with attached(SimpleNamespace(unet=unet), stack, context):
        labels = with_past(kinds(stack, steps), context.frozen)
        for step in range(steps):
            clock.mark()
            context.start(step)
            clock.mark()
    spans = list(zip(labels, clock.spans(), strict=True))
    return {label: median(span for other, span in spans if other == label) for label in labels}


def ours(unet, told, text, steps, grid, device, graphs):
    """For each kind of step of a run of `steps` steps: (name, how often it occurs, seconds that its start takes, a call of the
    network). A call is good until the next one is asked for."""
    stack, context = parse_stack(text), Context(steps, grid=grid, device=device.type)
    begun = starts(unet, stack, steps, grid, device)
    with attached(SimpleNamespace(unet=unet), stack, context):
        labels = with_past(kinds(stack, steps), context.frozen)
        for label, often in Counter(labels).items():  # in order of their first occurrence
            context.start(labels.index(label))
            call = partial(predict, unet, told)
            yield ", ".join(map(str, label[0])), often, begun[label], recorded(call, device) if graphs else call


@torch.no_grad()
def flops(config, lane, steps, side, batch, device):
    """FLOP of the network over a run of `steps` steps, `batch` of them, from operations executed on the meta device as this
    lane runs them on `device`; None for peers."""
    if lane in PEERS:
        return None
    text, mode = "full" if lane in SCHEDULERS else lane, Flops()
    stack, context, found = parse_stack(text), Context(steps, grid=(side, side), device=device.type), {}
    unet, told = unet_of(config, "meta", torch.float32), inputs(config, side, batch, "meta", torch.float32)
    with mode, attached(SimpleNamespace(unet=unet), stack, context):
        labels = with_past(kinds(stack, steps), context.frozen)
        for step, label in enumerate(labels):
            if label not in found:
                mode.total = 0
                context.start(step)
                predict(unet, told)
                found[label] = mode.total
    return sum(found[label] for label in labels)


class Peer(NamedTuple):
    """Another package's way. apply: edits pipe.unet and returns what begins a run; package: None where diffusers has it;
    host: whether it reads timesteps on the processor, where one on the GPU would make it wait."""
    apply: Callable
    package: str | None = None
    host: bool = False


def missing(lane):
    """The package that a lane needs and that is not here, or None."""
    if lane in PEERS and PEERS[lane].package:
        try:
            import_module(PEERS[lane].package)
        except ModuleNotFoundError as error:
            return error.name
    return None


def peer(unet, told, name, steps, grid, device):
    """Seconds of all calls of a run of `steps` steps as another package makes them: its first PEER_STEPS, scaled."""
    timesteps = torch.arange(PEER_STEPS).flip(0)
    begin = PEERS[name].apply(SimpleNamespace(unet=unet, scheduler=SimpleNamespace(timesteps=timesteps)))
    given, clock = (timesteps if PEERS[name].host else timesteps.to(device)).unbind(), Clock(device)
    for times in range(3):  # the first one warms up
        begin()
        clock.mark()
        for t in given:
            predict(unet, told, timestep=t)
        clock.mark()
    return min(clock.spans()[1:]) * steps / PEER_STEPS


def tomesd(ratio):
    def apply(pipe):
        from tomesd import apply_patch

        finest = next(level for level, kind in enumerate(pipe.unet.config.down_block_types) if "Attn" in kind)
        apply_patch(pipe.unet, ratio=ratio, max_downsample=2**finest)  # its default, 1, merges nothing in SDXL
        return lambda: None
    return apply


def broadcast(pipe):
    from diffusers import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast
    from diffusers.hooks import HookRegistry

    apply_pyramid_attention_broadcast(pipe.unet, PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, cross_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000), cross_attention_timestep_skip_range=(0, 1000),
        current_timestep_callback=lambda: 500))
    return HookRegistry.check_if_exists_or_initialize(pipe.unet).reset_stateful_hooks


def deepcache(pipe):
    from DeepCache import DeepCacheSDHelper

    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=3, cache_branch_id=0)
    helper.enable()
    return lambda: None  # a run's first step overwrites whatever it stored


PEERS = {"tomesd 0.5": Peer(tomesd(0.5), "tomesd"), "tomesd 0.6": Peer(tomesd(0.6), "tomesd"),
         "pyramid broadcast 2": Peer(broadcast), "DeepCache 3": Peer(deepcache, "DeepCache", host=True)}


def olss(steps):
    """A fitted scheduler; its coefficients are DDIM's, which take as long as any others."""
    timesteps = [999 - i * 1000 // steps for i in range(steps)]
    return OLSSScheduler(timesteps, *ddim(alphas_of(SCHEDULE, timesteps)))


def few(steps):
    """DPM-Solver++ 2M, for any number of steps."""
    from diffusers import DDIMScheduler

    return few_step.scheduler("dpm", DDIMScheduler(**SCHEDULE).config)


SCHEDULERS = {"olss": olss, "few_step": few}


def scheduled(unet, told, scheduler, steps, device, graphs):
    """A call that makes a whole run of `steps` steps with a scheduler."""
    seen = told["sample"].clone()
    call = partial(predict, unet, told, sample=seen)
    call = recorded(call, device) if graphs else call

    def run():
        scheduler.set_timesteps(steps, device=device)
        x = told["sample"]
        for t in scheduler.timesteps:
            seen.copy_(x)
            x = scheduler.step(call().clone(), t, x).prev_sample
    return run


def one_step(unet, told, decoder, device, graphs):
    """A call from prompt embedding to decoded 8-bit pixels of a model that takes one step."""
    def run():
        x = (told["sample"].float() - predict(unet, told).float()).to(decoder.dtype)
        return (decoder.decode(x).sample.clamp(-1, 1) * 127.5 + 127.5).byte()
    return recorded(run, device) if graphs else run


def materialise(unet):
    """Attention with its map in memory, as half precision code without fused kernels has it."""
    from diffusers.models.attention_processor import AttnProcessor

    unet.set_attn_processor(AttnProcessor())


@contextmanager
def prepared(unet, cell, backend):
    """The network as the cell asks for it."""
    with ExitStack() as exits:
        if cell.attention == "materialised":
            materialise(unet)
        if cell.how == "expert":
            exits.enter_context(expert(unet, cell.lane, backend))
        yield unet


def calls(unet, cell, told, grid, device, decoder=None):
    """What a run of the cell consists of, as from `ours`; of anything but our own stacks, the whole run."""
    graphs = cell.how == "expert"
    if decoder is not None:
        yield "run", 1, 0.0, one_step(unet, told, decoder, device, graphs)
    elif cell.lane in SCHEDULERS:
        yield "run", 1, 0.0, scheduled(unet, told, SCHEDULERS[cell.lane](cell.steps), cell.steps, device, graphs)
    else:
        yield from ours(unet, told, cell.lane, cell.steps, grid, device, graphs)


def seconds(unet, cell, told, grid, device, decoder=None):
    """Seconds of all network calls of one run of the cell's steps, for the whole batch."""
    if cell.lane in PEERS:
        return peer(unet, told, cell.lane, cell.steps, grid, device)
    total = 0.0
    with closing(calls(unet, cell, told, grid, device, decoder)) as steps:
        for _, often, begun, call in steps:
            total += often * (begun + seconds_of(call, device))
            del call  # its graph's memory, before the next one is recorded
    return total


def profile(unet, cell, told, grid, device, decoder=None):
    """Where a run of the cell spends its time and memory, for each kind of step: {"step", "often", "milliseconds" of one that
    is not watched, "busy" of them with kernels while it is, "kernels": [{"name", "calls", "milliseconds", "share"}],
    "allocations": [{"name", "megabytes" more than it gave back}]}, the TOP largest. On a CPU the kernels are torch's
    operations. A recorded graph allocates nothing. RuntimeError where the profiler saw no kernel."""
    found = []
    with closing(calls(unet, cell, told, grid, device, decoder)) as steps:
        for step, often, _, call in steps:
            plain = seconds_of(call, device, 1)
            found.append({"step": step, "often": often, "milliseconds": 1000 * plain, **watched(call, device)})
            del call
    return found


def watched(call, device):
    """What a profiler sees of one call, see profile."""
    from torch.autograd import DeviceType

    os.environ.setdefault("KINETO_LOG_LEVEL", "3")
    cuda = device.type == "cuda"
    with torch.profiler.profile(profile_memory=True) as seen:
        call()
        if cuda:
            torch.cuda.synchronize()
    rows = [row for row in seen.key_averages() if not row.is_user_annotation]
    times = sorted(((row.self_device_time_total if cuda else row.self_cpu_time_total, row) for row in rows
                    if (row.device_type == DeviceType.CUDA) == cuda), key=lambda pair: -pair[0])
    if not (total := sum(time for time, _ in times)):
        raise RuntimeError("The profiler saw no kernel: it needs leave to count on this machine.")
    memory = sorted(((row.self_device_memory_usage if cuda else row.self_cpu_memory_usage, row.key) for row in rows), reverse=True)
    return {"busy": total / 1000,
            "kernels": [{"name": row.key[:400], "calls": row.count, "milliseconds": time / 1000, "share": time / total}
                        for time, row in times[:TOP] if time],
            "allocations": [{"name": name, "megabytes": size / 2**20} for size, name in memory[:TOP] if size > 0]}
