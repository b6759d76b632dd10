"""A comparison from end to end on the tiny pipeline: order, statistics, matching, and one row's trouble staying its own."""

import subprocess
import sys
from contextlib import contextmanager
from statistics import median

import pytest
import torch

import fastviz
from fastviz import compare, metrics, models, run
from fastviz.methods import attention_reuse, few_step, tome
from fastviz.patch import replaced
from fastviz.request import Request, parse_stack


@pytest.fixture(autouse=True)
def tiny(tiny_pipe, monkeypatch):
    """The tiny pipeline in the place of the embedded model, and nothing warm."""
    monkeypatch.setitem(models._loaded, "stickers", tiny_pipe)
    monkeypatch.setattr(compare, "warmed", {})
    return tiny_pipe


def asked(methods, steps=3, repeats=1):
    return Request("a cat on the beach", seed=7, size=128, steps=steps, repeats=repeats, methods=methods)


@contextmanager
def failing_attach(method, error):
    """Lets the method fail whenever it is attached."""
    @contextmanager
    def attach(pipe, knobs, context):
        raise error
        yield
    before = method.attach
    method.attach = attach
    try:
        yield
    finally:
        method.attach = before


def test_rows_come_full_first_and_interleaved(tiny):
    request = asked("tome,few_step(steps=2),tome+attention_reuse", repeats=2)
    rows = list(compare(request))
    assert [row.index for row in rows] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert [row.done for row in rows] == [False] * 4 + [True] * 4 and [row.repeats for row in rows] == [1] * 4 + [2] * 4
    last = compare.final(rows)
    assert [row.stack for row in last] == ["full", "tome", "few_step(steps=2)", "tome+attention_reuse"]
    assert [row.title for row in last] == ["Full model", "Token merging", "Fewer steps", "Token merging + Attention reuse"]
    assert [row.steps for row in last] == [3, 3, 2, 3]
    for first, row in zip(rows[:4], last):
        runs = (first.run, row.run)
        assert row.error is None and row.applied
        assert row.seconds == median(each.seconds for each in runs) and row.spread == tuple(sorted(each.seconds for each in runs))
        assert row.parts["denoising"] == median(sum(each.steps) for each in runs) and len(row.per_step) == row.steps
        assert row.speedup == pytest.approx(last[0].seconds / row.seconds)
        assert row.flops == pytest.approx(row.flops_share * last[0].flops) and len(row.flops_per_step) == row.steps
        alone = run.generate(tiny, request, request.methods[row.index], row.steps)
        assert row.image.tobytes() == alone.image.tobytes() and row.acted == alone.acted
        assert metrics.score(last[0].image, row.image, request.prompt, "stickers")["psnr"] == row.metrics["psnr"]
    assert last[0].metrics["ssim"] == 1 and last[0].lpips_map is last[0].difference_map is None
    assert last[2].flops_share < last[1].flops_share < 1 and last[3].flops_share < last[1].flops_share


def test_a_row_that_matches_another_runs_after_it_with_the_steps_that_fit(tiny):
    rows = list(compare(asked("few_step(match=tome),tome", steps=6, repeats=2)))
    assert [row.index for row in rows] == [0, 2, 0, 2, 1, 1]
    full, matched, tome = compare.final(rows)
    fixed = median(row.run.text + row.run.decode for row in rows if row.index == 0)
    per_step = median(median(row.run.steps) for row in rows if row.index == 0)
    assert matched.steps == few_step.plan(few_step.Knobs(match="tome"), 6, tome.seconds, per_step, fixed)


@pytest.mark.parametrize("neutral", ["tome(ratio=0)", "attention_reuse(share=0)", "tome(ratio=0)+attention_reuse"])
def test_what_changed_nothing_is_not_applied(neutral):
    full, row = compare.final(compare(asked(neutral)))
    assert not row.applied and row.speedup is None and row.error is None
    if "+" not in neutral:
        assert row.image.tobytes() == full.image.tobytes() and row.metrics["psnr"] == float("inf") and row.flops_share == 1


@pytest.mark.parametrize("error, said", [(MemoryError(), "Out of memory at 128 px"), (attention_reuse.Refused("No room."), "No room."),
                                         (ZeroDivisionError("x"), "could not be run (ZeroDivisionError)")])
def test_a_method_that_fails_says_so_and_the_others_complete(error, said):
    request = asked("attention_reuse,tome,few_step(match=attention_reuse)", repeats=2)
    with failing_attach(attention_reuse, error):
        rows = list(compare(request))
    full, reuse, tome, matched = compare.final(rows)
    assert said in reuse.error and reuse.image is None and reuse.seconds is None and reuse.done
    assert sum(row.index == 1 for row in rows) == 1  # not tried again
    assert "no time to match" in matched.error and matched.done
    assert full.error is tome.error is None and tome.repeats == 2 and tome.speedup
    assert not run.LOCK.locked()
    assert compare.final(compare(request))[1].error is None


def test_without_the_full_model_every_row_says_why(tiny):
    def broken(*args, **kwargs):
        raise MemoryError
    with replaced(tiny.unet, forward=broken):
        rows = list(compare(asked("tome,few_step", repeats=2)))
    assert [row.index for row in rows] == [0, 1, 2] and all(row.done for row in rows)
    assert rows[0].error.startswith("Out of memory") and all(rows[0].error in row.error for row in rows[1:])


def test_out_of_memory_in_the_metrics_belongs_to_its_row(monkeypatch):
    score, count = metrics.score, []

    def second_fails(*pictures):
        count.append(1)
        if len(count) == 2:
            raise MemoryError
        return score(*pictures)
    monkeypatch.setattr(metrics, "score", second_fails)
    rows = compare.final(compare(asked("tome,few_step(steps=2)")))
    assert [bool(row.error) for row in rows] == [False, True, False]


def test_a_lost_device_ends_the_whole_comparison(monkeypatch):
    monkeypatch.setattr(run, "alive", lambda: False)
    with failing_attach(tome, torch.AcceleratorError("CUDA error: unspecified launch failure", 719)), pytest.raises(run.Lost):
        compare.final(compare(asked("tome,few_step(steps=2)")))


@pytest.mark.parametrize("after", [1, 4, 9])
def test_stop_ends_it_within_a_step(tiny, after):
    done = []
    handle = tiny.unet.register_forward_hook(lambda *_: done.append(1))
    try:
        with pytest.raises(run.Stopped):
            list(compare(asked("tome,few_step"), stop=lambda: len(done) >= after))
    finally:
        handle.remove()
    assert len(done) == after and not run.LOCK.locked()
    assert all("forward" not in module.__dict__ for module in tiny.unet.modules())


def test_a_closed_generator_holds_nothing(tiny):
    rows = compare(asked("tome,few_step"))
    next(rows)
    rows.close()
    assert not run.LOCK.locked()


def test_progress_counts_down_to_nothing_left():
    told = []
    list(compare(asked("tome,few_step(match=tome)", steps=4, repeats=2), on_progress=told.append))
    assert [(p.row, p.repeat) for p in told if p.step == 0] == [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (2, 1)]
    assert told[0].seconds_left is None and told[0].title == "Full model" and told[0].rows == 3
    assert all(p.seconds_left >= 0 for p in told[1:]) and told[-1].seconds_left == pytest.approx(0, abs=1e-9)
    assert all(0 <= p.step <= p.steps and p.repeat < p.repeats for p in told)


def test_each_row_warms_up_once_the_full_model_always_and_a_scheduler_never(tiny):
    steps = []
    handle = tiny.unet.register_forward_hook(lambda *_: steps.append(1))
    try:
        counts = []
        for _ in range(2):
            steps.clear()
            list(compare(asked("tome,few_step(steps=1)")))
            counts.append(len(steps))
    finally:
        handle.remove()
    assert counts == [(2 + 3) + (2 + 3) + 1, (2 + 3) + 3 + 1]


def test_the_environment_names_what_times_depend_on(tiny):
    told = compare.environment(tiny)
    assert told["dtype"] == "float32" and told["device"] and "attention" in told["attention kernel"]
    assert {"threads", "torch", "diffusers", "python", "system"} <= told.keys()
    assert compare.environment().keys() == told.keys()


def test_the_public_surface_is_light_and_always_the_same():
    code = ("import sys, fastviz; assert 'torch' not in sys.modules; from fastviz import Request, compare, METHODS; "
            "import fastviz.compare; assert fastviz.compare is compare and callable(compare) and compare.Row and METHODS; print('good')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=models.ROOT)
    assert done.stdout.strip() == "good", done.stderr
    assert set(fastviz.__all__) <= {name for name in fastviz.__all__ if hasattr(fastviz, name)}
    with pytest.raises(AttributeError):
        fastviz.nothing


def test_a_lane_knows_its_steps_before_it_runs():
    request = asked("few_step(steps=0),few_step(steps=2),few_step(match=full)")
    lanes = [compare.lane_of(i, stack, request) for i, stack in enumerate(request.methods)]
    assert [lane.steps for lane in lanes] == [3, 3, 2, None]
    assert compare.solver_of(parse_stack("tome+few_step(steps=2)")).steps == 2 and compare.solver_of(parse_stack("tome")) is None


def test_a_device_that_does_not_tell_its_kernel_is_no_fault(monkeypatch):
    def choice(*probes):
        raise NotImplementedError("Could not run 'aten::_fused_sdp_choice' with arguments from the 'MPS' backend")

    monkeypatch.setattr(torch, "_fused_sdp_choice", choice)
    assert compare.environment()["attention kernel"] == "unknown"
