"""What every training stage shares: endless data, a time budget, warm-up and decay, moving averages, resuming."""

import copy
import math
import os
import shutil
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..compare import device_name
from ..judge import FOLDER as JUDGE
from ..models import knows_bfloat16
from ..verified import check

WORK = Path("training")  # checkpoints: ignored by git, continued from when present
SHIPPED = JUDGE.parent  # what is committed: continued from on a machine without a checkpoint
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
PRECISION = torch.bfloat16 if CUDA or knows_bfloat16() else torch.float32  # that training computes in; weights stay single
WORTH = 10  # minutes of training on a processor from which on compiling, two or three minutes of it, is won back
PAUSE = 60  # seconds between two steps, of which more is no training: somebody stopped the process
RECENT = 5  # seconds of training that need no report of their own when it ends
clock = time.time  # what `train` reads


class Endless(IterableDataset):
    """make(seed) -> an endless iterator of batches; every worker process gets a seed of its own."""

    def __init__(self, make, seed):
        self.make, self.seed = make, seed

    def __iter__(self):
        worker = get_worker_info()
        return self.make(self.seed if worker is None else self.seed + 1_000_003 * (worker.id + 1))


def feed(make, seed):
    """Endless batches of make(seed): painted by the other cores beside a GPU, in this process on a CPU."""
    workers = max(1, len(os.sched_getaffinity(0)) - 2) if CUDA else 0
    return iter(DataLoader(Endless(make, seed), batch_size=None, num_workers=workers, pin_memory=CUDA,
                           prefetch_factor=4 if workers else None))


def autocast():
    """bfloat16 on a GPU and on a processor with instructions for it, where a step then takes two thirds of the time. Nothing
    that was cast is kept: a stage may change weights between two of its calls of one network."""
    return nullcontext() if PRECISION == torch.float32 else torch.autocast(DEVICE, PRECISION, cache_enabled=False)


def exact():
    """Single precision inside `autocast`."""
    return torch.autocast(DEVICE, enabled=False)


def worth(minutes):
    """Whether compiling pays for `minutes` of training."""
    return CUDA or bool(minutes >= WORTH and shutil.which("g++"))


def compiled(function, minutes):
    """A function of networks and tensors, compiled where that pays: what is not called as a module."""
    return torch.compile(function, dynamic=False) if worth(minutes) else function


def quick(unet, minutes=0):
    """A U-Net on the training device in its fastest form for `minutes` of training: channels_last; compiled, on a processor
    only where it pays; there attention writes its maps out, because the fused kernel takes 2.5 times as long backwards."""
    unet.to(DEVICE, memory_format=torch.channels_last)
    if CUDA:
        torch.set_float32_matmul_precision("high")
    else:
        unet.set_attn_processor(AttnProcessor())
    if worth(minutes):
        unet.compile(dynamic=False)  # once for each shape: windows and scenes
    return unet


def pace(done, warm=0.02, decay=0.25, floor=0.05):
    """Learning-rate factor after a share `done` (0..1) of the budget: up, constant, then cosine down to `floor`."""
    if done < warm:
        return done / warm
    if done <= 1 - decay:
        return 1.0
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - 1 + decay) / decay)))


@torch.no_grad()
def follow(average, model, step, horizon):
    """Exponential moving average over about `horizon` steps, shorter while training is young."""
    weight = 1 / min(horizon, 1 + step / 4)
    for a, p in zip(average.state_dict().values(), model.state_dict().values()):
        if a.is_floating_point():
            a.lerp_(p, weight)
        else:
            a.copy_(p)


def checkpoint(name):
    """What `train` saved under this name: step, hours, log, sittings, model, average, optimizers. None when there is nothing."""
    path = WORK / f"{name}.pt"
    return torch.load(path, map_location=DEVICE, weights_only=True) if path.exists() else None


def write(name, saved):
    """Saves what `checkpoint` gives: whole or not at all. FloatingPointError when a weight is not finite: what was saved before stays."""
    if not all(weight.isfinite().all() for part in ("model", "average") for weight in saved[part].values() if weight.is_floating_point()):
        raise FloatingPointError(f"{name}: a weight is not finite after step {saved['step']}; the checkpoint stays as it was saved before.")
    WORK.mkdir(parents=True, exist_ok=True)
    part = WORK / f"{name}.part"
    torch.save(saved, part)
    part.replace(WORK / f"{name}.pt")


def start_seed(name, seed, start=None):
    """Seeds torch with `seed` plus the steps done so far, so that a continued run sees new scenes, and returns it."""
    seed += (checkpoint(name) or start or {"step": 0})["step"]
    torch.manual_seed(seed)
    return seed


def shipped(folder, part=""):
    """The committed weights {name: tensor in single precision} of assets/stickers/<folder>/<part>, from all its shards, or
    None when there are none. BadModel when they are damaged."""
    files = sorted((SHIPPED / folder / part).glob("*.safetensors"))
    if not files:
        return None
    check(SHIPPED / folder)
    return {name: value.float() for file in files for name, value in load_file(file).items()}


def update(parameters, optimizers):
    """One step of the optimizers with the gradients clipped to norm 1, which are gone afterwards. Returns whether it was made: not
    where the norm is not finite, one such step would spoil every weight. A GPU is not waited for to tell: there `write` notices."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    finite = CUDA or bool(norm.isfinite())
    for optimizer in optimizers:
        if finite:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return finite


def train(name, model, batches, loss, minutes, lr, *, optimizers=None, horizon=400, decay=0.25, report=None, report_every=300, save_every=180,
          start=None, recipe=None, passed=None):
    """Trains `model` for `minutes` and returns its moving average (eval mode) and the log.

    batches: iterator, or a function of the moving average that gives one; loss(model, batch) -> (scalar tensor, dict of numbers to log), a batch still on the CPU.
    training/<name>.pt is written every `save_every` seconds and continued from when present. report(average) -> dict is
    logged every `report_every` seconds and at the end. decay: the last share of the budget, in which the rate falls. start: what
    to go on from without a checkpoint: a dict of weights (of the model), step, hours and log. recipe: what the checkpoint tells
    of this sitting besides minutes, steps, lr and decay. passed(share): called before every step with the share of `minutes` that
    has passed. FloatingPointError when weights are no longer finite.
    """
    model.to(DEVICE).train()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizers = optimizers or [torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)]
    rates = [[group["lr"] for group in o.param_groups] for o in optimizers]
    step, hours, log, sittings = 0, 0.0, [], []
    if saved := checkpoint(name) or start:
        model.load_state_dict(saved.get("model") or saved["weights"])
        average.load_state_dict(saved.get("average") or saved["weights"])
        for optimizer, state in zip(optimizers, saved.get("optimizers", ())):
            optimizer.load_state_dict(state)
        step, hours, log, sittings = saved["step"], saved["hours"], saved["log"], saved.get("sittings", [])
        print(f"{name}: continuing at step {step}, {hours:.2f} h")
    begun, elapsed, saved_at, reported_at = step, 0.0, 0.0, 0.0  # seconds of training: while the process is stopped, none pass
    sums, count, skipped, before = {}, 0, 0, clock()

    def save():
        sitting = {"minutes": round(elapsed / 60, 2), "steps": step - begun, "lr": lr, "decay": decay, **(recipe or {})}
        write(name, dict(model=model.state_dict(), average=average.state_dict(), step=step, log=log, hours=hours + elapsed / 3600,
                         sittings=[*sittings, sitting], optimizers=[o.state_dict() for o in optimizers]))

    def tell():
        row = {"device": device_name(torch.device(DEVICE)), "step": step, "hours": round(hours + elapsed / 3600, 3), "rate": round(factor, 3),
               "steps/s": round(count / (elapsed - reported_at), 2), "skipped": skipped,
               **{key: round(float(total) / count, 5) for key, total in sums.items()}, **(report(average) if report else {})}
        print(f"{name}: {row}", flush=True)
        log.append(row)

    batches = batches(average) if callable(batches) else batches
    while elapsed < 60 * minutes:
        share = elapsed / (60 * minutes)
        factor = pace(share, decay=decay)
        for optimizer, base in zip(optimizers, rates):
            for group, rate in zip(optimizer.param_groups, base):
                group["lr"] = rate * factor
        if passed:
            passed(share)
        with autocast():
            value, numbers = loss(model, next(batches))
        value.backward()
        if update(model.parameters(), optimizers):
            step, count = step + 1, count + 1
            follow(average, model, step, horizon)
            for key, number in {"loss": value, **numbers}.items():
                sums[key] = sums.get(key, 0.0) + torch.as_tensor(number).detach().float()
        else:
            skipped += 1
        now = clock()
        elapsed, before = elapsed + min(now - before, PAUSE), now
        if elapsed - reported_at > report_every:
            tell()
            sums, count, skipped, reported_at = {}, 0, 0, elapsed
        if elapsed - saved_at > save_every:
            save()
            saved_at = elapsed
    if elapsed - reported_at > RECENT:
        tell()
    save()
    return average, log
