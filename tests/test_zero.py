"""ZeroGPU with its own package: what the page's process can do without a device, and what comes back from a worker.

Each test is a process of its own, because `import spaces` must come before torch.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import make_student

from fastviz import models, verified

ZERO = {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": "http://127.0.0.1:9"}  # nobody answers there
BEGIN = """
import dataclasses, io, json, sys, threading, time
import app  # which imports spaces before torch
import torch
from PIL import Image
from fastviz import models, verified
from fastviz.request import BadRequest, Request
from fastviz.ui import health, inside, job, worker

models.MODELS["tiny"] = dataclasses.replace(models.MODELS["stickers"], key="tiny", source=sys.argv[1])
"""
CHECKED = BEGIN + """
import spaces.zero.torch
from fastviz import cost, metrics

file = io.BytesIO()
Image.linear_gradient("L").convert("RGB").save(file, "PNG")
worker.rent()
for key in ("stickers", "tiny"):
    app.warm([key])
spaces.zero.torch.pack()  # as a launch does: from now on no weights are in memory
told = {"faults": health.faults, "LPIPS": metrics.perceptual.cache_info().currsize}
asked = {"plain": {"methods": "full,few_step,attention_reuse,tome,atedm"}, "sketch": {"sketch": file.getvalue()}, "start": {"start": file.getvalue()},
         "student": {"model": "tiny", "size": 128, "methods": "full,sdxs,sdxs(unet=false)"}, "refused": {"methods": "full,olss(steps=7)"}}

def ask(name, values):
    try:
        request = Request("a cat", **values)
        worker.check(request)
        told[name] = worker.duration(request)
    except Exception as error:
        told[name] = repr(error)[:200]

for name, values in asked.items():
    thread = threading.Thread(target=ask, args=(name, values))
    thread.start()
    thread.join()
told["devices"] = sorted({key[1] for key in cost.counted})
print(json.dumps(told))
"""
CROSSED = BEGIN + """
import spaces.zero.torch
from spaces.zero import wrappers
from spaces.zero.api import ScheduleResponse
from spaces.zero.gradio import error as zero_error
from fastviz import run

spaces.zero.torch.unpatch()  # no device is imitated: a worker computes on the processor
torch.set_num_threads(1)
wrappers.torch.enter_mode = lambda: None
wrappers.worker_init = lambda **told: None
lent, told = [], {}

def schedule(task_id, request, duration, gpu_size):
    lent.append(duration.total_seconds())
    return ScheduleResponse(idle=False, nvidiaIndex=0, nvidiaUUID="", allowToken="")

def quota(**told):
    raise zero_error("ZeroGPU quota exceeded", "You have exceeded your free ZeroGPU quota (120s requested vs. 60s left). Try again in 3:00:00. ")

wrappers.client.schedule, wrappers.client.release = schedule, lambda *args, **told: None
worker.rent()
app.warm(["tiny"])
compare = sys.modules["fastviz.compare"]
whole, traced = compare.compare, compare.traced
request = Request("a cat", seed=4, model="tiny", size=128, steps=2, repeats=1, methods="full,tome")

def done(work):
    work.thread.start()
    work.thread.join()
    return [work.state, work.sentence]

def raising(error):
    def failing(*args, **told):
        raise error
        yield
    return failing

first = job.Job(request)
told["rows"] = [*done(first), [row.error for row in first.rows.values()], first.environment["device"] != ""]
told["picture"] = [row.image.tobytes() == ours.image.tobytes() for row, ours in zip(first.rows.values(), compare.final(whole(request)))]
look = inside.Inside(first)
told["look"] = [*done(look), [view["error"] for view in look.views], len(look.traces)]
told["lent"] = lent[:]
for name, error in (("BadModel", verified.BadModel("sd15 is not on this disk: fetch it.")), ("BadRequest", BadRequest("methods", "Leave this row out.")),
                    ("Failed", run.Failed("Out of memory at 128 px.")), ("Stopped", run.Stopped()), ("KeyError", KeyError("secret")),
                    ("Lost", run.Lost("The device stopped answering: start the program again."))):
    compare.compare = raising(error)
    told[name] = [*done(job.Job(request)), job.LOST.is_set(), health.faults.get("model", "")]
    health.note("model", "")
compare.compare = whole
told["look again"] = []
for error in (KeyError("secret"), verified.BadModel("sd15 is not on this disk: fetch it."), run.Lost("gone")):
    compare.traced = lambda *args, **told: next(raising(error)())
    look = inside.Inside(first)
    told["look again"].append([*done(look), [view["error"] for view in look.views]])
compare.traced = traced
look = inside.Inside(first)
look.watch = lambda i, title, step, steps: look.stop.set()
told["look stopped"] = [*done(look), len(look.traces)]
generate = compare.generate
compare.generate = lambda *args, on_step=None, **told: generate(*args, on_step=lambda i, steps: time.sleep(0.3), **told)
slow, began = job.Job(Request("a cat", model="tiny", size=128, steps=100, repeats=1, methods="full")), time.monotonic()
threading.Timer(2, slow.stop.set).start()
told["stopped"] = [*done(slow), len(slow.rows), time.monotonic() - began]
told["left"] = [path.name for path in app.FOLDER.glob("under-way*")]
wrappers.client.schedule = quota
told["quota"] = [done(job.Job(request)), done(inside.Inside(first))]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def home(tiny_pipe, tiny_folder, tmp_path_factory):
    """The tiny model with a student beside it, as they are shipped."""
    folder = tmp_path_factory.mktemp("zero") / "model"
    shutil.copytree(tiny_folder, folder)
    make_student(tiny_pipe, folder)
    verified.write_hashes(folder.parent)
    return folder


def told_by(code, home, tmp_path):
    """What a program prints as its last line."""
    own = {"TMPDIR": str(tmp_path), "ZEROGPU_OFFLOAD_DIR": str(tmp_path / "offload")}
    done = subprocess.run([sys.executable, "-c", code, str(home)], cwd=models.ROOT, capture_output=True, text=True, timeout=400,
                          env={**os.environ, **ZERO, **own})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))


def test_every_kind_of_request_can_be_checked_while_no_device_is_lent(home, tmp_path):
    """The thread of a visitor's work, unlike the one that began the program, has nothing that imitates a device."""
    told = told_by(CHECKED, home, tmp_path)
    assert told["faults"] == {} and told["LPIPS"] == 1 and told["devices"] == ["cuda"]
    assert all(isinstance(told[name], int) and 20 <= told[name] < 60 for name in ("plain", "sketch", "start", "student", "refused")), told


def test_rows_records_and_sentences_come_back_from_a_worker(home, tmp_path):
    """Through the package's own wrappers: a process is forked for every call, and what it gives is pickled."""
    told = told_by(CROSSED, home, tmp_path)
    bad_model, unforeseen = "sd15 is not on this disk: fetch it.", "The comparison could not be run (KeyError): the program's log says more."
    assert told["rows"] == ["finished", "Done.", [None, None], True] and told["picture"] == [True, True]
    assert told["look"] == ["finished", "Done.", [None, None], 2]
    assert len(told["lent"]) == 3 and max(told["lent"][1:]) <= told["lent"][0] < 60
    assert told["BadModel"] == ["failed", bad_model, False, bad_model]
    assert told["BadRequest"][:2] == ["failed", "Leave this row out."] and told["Failed"][:2] == ["failed", "Out of memory at 128 px."]
    assert told["Stopped"][0] == "stopped" and told["KeyError"][:2] == ["failed", unforeseen]
    assert told["Lost"][:3] == ["failed", "ZeroGPU: the GPU stopped answering. Another one is lent to who asks again.", False]
    unknown, bad, lost = told["look again"]
    assert unknown[0] == "finished" and ["(KeyError)" in error for error in unknown[2]] == [True, True]
    assert bad == ["failed", bad_model, []] and lost[0] == "failed" and "GPU stopped answering" in lost[1]
    assert told["look stopped"][0] == "stopped" and told["look stopped"][2] == 0
    state, _, rows, seconds = told["stopped"]
    assert state == "stopped" and rows == 0 and seconds < 15 and told["left"] == []  # the row alone would take 30 s
    assert [each[0] for each in told["quota"]] == ["failed", "failed"]
    assert {each[1] for each in told["quota"]} == {
        "ZeroGPU quota exceeded: You have exceeded your free ZeroGPU quota (120s requested vs. 60s left). Try again in 3:00:00."}
