"""The ways to run a network that the GPU benchmark times: our stacks, peers, and the expert's settings."""

import os
from collections import Counter
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import torch

from ..cost import Flops, kinds, with_past
from ..methods import attached
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
    """The network's output; its first argument by position, which tomesd asks for."""
    told = told | other
    return unet(told["sample"], **{name: value for name, value in told.items() if name != "sample"}).sample


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


def ours(unet, told, text, steps, grid, device, graphs):
    """For each kind of step of a run of `steps` steps: (name, how often it occurs, seconds that its start takes, a call of the
    network). A call is good until the next one is asked for."""
    stack, context = parse_stack(text), Context(steps, grid=grid, device=device.type)
    with attached(SimpleNamespace(unet=unet), stack, context):
        labels = with_past(kinds(stack, steps), context.frozen)
        for label, often in Counter(labels).items():  # in order of their first occurrence
            clock = Clock(device)
            clock.mark()
            context.start(labels.index(label))
            clock.mark()
            begun, = clock.spans()
            call = partial(predict, unet, told)
            yield ", ".join(map(str, label[0])), often, begun, recorded(call, device) if graphs else call


@torch.no_grad()
def flops(config, lane, steps, side, batch, device):
    """FLOP of the network over a run of `steps` steps, `batch` of them, from operations executed on the meta device as this
    lane runs them on `device`; None for peers."""
    if lane in PEERS:
        return None
    text, mode = "full" if lane == "olss" else lane, Flops()
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


def peer(unet, told, name, steps, grid, device):
    """The same of another package: its first PEER_STEPS steps, scaled."""
    pipe = SimpleNamespace(unet=unet, scheduler=SimpleNamespace(timesteps=torch.arange(PEER_STEPS).flip(0)))
    begin = PEERS[name](pipe)
    clock = Clock(device)
    for times in range(3):  # the first one warms up
        begin()
        clock.mark()
        for t in pipe.scheduler.timesteps:
            predict(pipe.unet, told, timestep=t)
        clock.mark()
    return min(clock.spans()[1:]) * steps / PEER_STEPS


def tomesd(ratio):
    def apply(pipe):
        from tomesd import apply_patch

        apply_patch(pipe.unet, ratio=ratio)
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
    if not find_spec("DeepCache"):
        raise RuntimeError("DeepCache is not installed: install it beside this package to compare with it.")
    from DeepCache import DeepCacheSDHelper

    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=3, cache_branch_id=0)

    def begin():
        helper.disable()
        helper.enable()
    begin()
    return begin


PEERS = {"tomesd 0.5": tomesd(0.5), "tomesd 0.6": tomesd(0.6), "pyramid broadcast 2": broadcast, "DeepCache 3": deepcache}


def fitted(unet, told, steps, device, graphs):
    """A call that makes a whole run with a fitted scheduler; its coefficients are DDIM's, which take as long as any others."""
    timesteps = [999 - i * 1000 // steps for i in range(steps)]
    wx, we = ddim(alphas_of(SCHEDULE, timesteps))
    scheduler, seen = OLSSScheduler(timesteps, wx, we), told["sample"].clone()
    call = recorded(lambda: predict(unet, told, sample=seen), device) if graphs else lambda: predict(unet, told, sample=seen)

    def run():
        scheduler.set_timesteps()
        x = told["sample"]
        for t in timesteps:
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
    elif cell.lane == "olss":
        yield "run", 1, 0.0, fitted(unet, told, cell.steps, device, graphs)
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
