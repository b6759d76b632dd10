"""The training loop that every stage shares: a time budget, warm-up and decay, moving averages, resuming."""

import copy
import math
import time
from pathlib import Path

import torch

WORK = Path("training")  # checkpoints and caches: ignored by git, continued from when present


def pace(done, warm=0.02, decay=0.25, floor=0.05):
    """Learning-rate factor after a share `done` (0..1) of the budget: up, constant, then cosine down to `floor`."""
    if done < warm:
        return done / warm
    if done < 1 - decay:
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


def train(name, model, batches, loss, minutes, lr, *, optimizers=None, horizon=400, save_every=180, report=None, report_every=300,
          device="cpu"):
    """Trains `model` for `minutes` and returns its moving average (eval mode) and the log.

    batches: iterator; loss(model, batch) -> (scalar tensor, dict of numbers to log). `training/<name>.pt` is
    written every `save_every` seconds and continued from when present: step, hours, weights, averages, optimiser.
    report(average) -> dict is logged every `report_every` seconds.
    """
    model.to(device).train()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizers = optimizers or [torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)]
    rates = [[group["lr"] for group in o.param_groups] for o in optimizers]
    path, step, hours, log = WORK / f"{name}.pt", 0, 0.0, []
    if path.exists():
        saved = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        for optimizer, state in zip(optimizers, saved["optimizers"]):
            optimizer.load_state_dict(state)
        step, hours, log = saved["step"], saved["hours"], saved["log"]
        print(f"{name}: continuing at step {step}, {hours:.2f} h")

    def save():
        WORK.mkdir(parents=True, exist_ok=True)
        state = dict(model=model.state_dict(), average=average.state_dict(), step=step, log=log,
                     hours=hours + (time.time() - start) / 3600, optimizers=[o.state_dict() for o in optimizers])
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    start = saved_at = reported_at = time.time()
    sums, count = {}, 0
    while (elapsed := time.time() - start) < 60 * minutes:
        factor = pace(elapsed / (60 * minutes))
        for optimizer, base in zip(optimizers, rates):
            for group, rate in zip(optimizer.param_groups, base):
                group["lr"] = rate * factor
        value, numbers = loss(model, next(batches))
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        follow(average, model, step, horizon)
        for key, number in {"loss": float(value.detach()), **numbers}.items():
            sums[key] = sums.get(key, 0.0) + number
        count += 1
        now = time.time()
        if now - reported_at > report_every:
            extra = report(average) if report else {}
            row = {"step": step, "hours": round(hours + (now - start) / 3600, 3), "lr": round(factor, 3),
                   **{k: round(v / count, 5) for k, v in sums.items()}, **extra}
            print(f"{name}: {row}", flush=True)
            log.append(row)
            sums, count, reported_at = {}, 0, time.time()
        if now - saved_at > save_every:
            save()
            saved_at = time.time()
    save()
    return average, log
