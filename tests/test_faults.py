"""What breaks is told in a sentence, costs nobody else anything, and is over when its cause is."""

import os
import pickle
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import faulty_app
import httpx
import psutil
import pytest
from ledger import LEDGER
from serving import HTTP, PATIENCE, picture, serve, tiny_page, wait
from test_load import asked, occupied, visitors

from fastviz import verified
from fastviz.metrics import BACKBONES
from fastviz.request import Request

full = pytest.mark.torture
ROWS = "full,tome,few_step(steps=1)"


def well(server, reference):
    """The server is idle, healthy and gives the picture that it always gave."""
    wait(server.idle)
    assert picture(server.compare(asked(7))["rows"][0]) == reference(7)


def answers(server):
    """Whether it is there, with everything loaded."""
    with suppress(httpx.TransportError):
        return server.health()[1]["state"] in ("ready", "busy")
    return False


@pytest.mark.parametrize("seed", [seed for seed, place in faulty_app.PLACES.items() if place != "trace"], ids=faulty_app.PLACES.get)
def test_out_of_memory_stays_in_its_row(faulty_server, reference, seed):
    with LEDGER.fault(faulty_app.PLACES[seed]):
        told = faulty_server.compare(asked(seed, ROWS, steps=6))
        assert told["sentence"] == "Done, but 1 of 3 rows failed: their cards say why."
        assert [bool(row["picture"]) for row in told["rows"]] == [True, False, True]
        assert told["rows"][1]["error"].startswith("Out of memory at 128 px: choose a smaller size")
        assert picture(told["rows"][0]) == reference(seed, 6)
        well(faulty_server, reference)


def test_out_of_memory_of_the_full_model_is_told_in_every_row(faulty_server, reference):
    with LEDGER.fault("full model"):
        told = faulty_server.compare(asked(faulty_app.FULL, ROWS))
        assert all("Out of memory" in row["error"] for row in told["rows"])
        well(faulty_server, reference)


def test_out_of_memory_while_recording_stays_in_its_row(faulty_server, reference):
    seed = next(seed for seed, place in faulty_app.PLACES.items() if place == "trace")
    values = tiny_page().ask.values(Request("a cat", seed=seed, steps=3, size=128, methods=ROWS, repeats=1))
    with LEDGER.fault("trace"):
        assert faulty_server.page("run", values, "trace")["status"]["sentence"] == "Done."
        look = faulty_server.page("look_inside", [], "trace")["inside"]
        errors = {row["title"]: row["error"] for row in look["rows"]}
        assert errors.pop("Token merging").startswith("Out of memory") and not any(errors.values()), look["rows"]
        well(faulty_server, reference)


def test_a_lost_device_is_told_ends_the_server_with_70_and_it_comes_back(faulty_server, reference):
    with LEDGER.fault("lost device"):
        told = faulty_server.call("compare", asked(faulty_app.LOST))[2]["output"]["data"][0]
        assert told["state"] == "failed" and told["sentence"].startswith("The device stopped answering. The server ends now")
        with suppress(httpx.TransportError):  # where it is still there, it takes nothing more and says so
            status, said = faulty_server.health()
            assert (status, said["state"], said["reason"]) == (503, "degraded", told["sentence"])
            assert faulty_server.call("compare", asked(7))[1]["state"] == "refused"
        wait(lambda: '"code": 70' in faulty_server.log.read_text())
        wait(lambda: answers(faulty_server))
        well(faulty_server, reference)


def server_process(server):
    return psutil.Process(server.process.pid).children()[0]


def test_a_server_killed_at_work_starts_again_with_an_empty_folder(faulty_server, reference):
    with LEDGER.fault("kill -9"):
        left = faulty_server.temp / "left.zip"
        left.write_bytes(b"left behind")
        with pytest.raises(httpx.TransportError), occupied(faulty_server):  # its visitor hears that the connection broke
            server_process(faulty_server).kill()
            with HTTP.stream("GET", f"{faulty_server.address}/gradio_api/app_id"):
                pass
        wait(lambda: answers(faulty_server))
        assert not left.exists() and '"code": -9' in faulty_server.log.read_text()
        well(faulty_server, reference)


@pytest.mark.parametrize("count", (8, pytest.param(100, marks=full)))
def test_a_storm_of_visitors_who_leave(tiny_server, reference, count):
    """As soon as their work is under way, or while they still wait: nothing of it goes on."""
    with LEDGER.fault("client vanishes"):
        visitors(min(count, 12), lambda i: tiny_server.vanish("compare", asked(i, steps=100, repeats=20), after=("estimation", "process_generating")[i % 2]))
        well(tiny_server, reference)
    with LEDGER.fault("cancel storm"):
        for i in range(count):
            cancelled(tiny_server, i)
        well(tiny_server, reference)


def cancelled(server, i):
    """A press on Stop, as the page sends it: the call is cancelled by its number."""
    with LEDGER.request() as end:
        answer, session = server.join("compare", asked(i, steps=100, repeats=20))
        heard = server.messages(session)
        while next(heard)["msg"] != "process_generating":
            pass
        HTTP.post(f"{server.address}/gradio_api/cancel", json={
            "session_hash": session, "fn_index": server.number("compare"), "event_id": answer.json()["event_id"]}).raise_for_status()
        assert list(heard)[-1]["msg"] == "process_completed"
        end.append("cancelled")


def damage_shape(folder):
    """Weights of another shape, with hashes that fit."""
    from safetensors.torch import load_file, save_file

    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    save_file({**tensors, name: tensors[name].new_zeros(3, 3)}, path)
    verified.write_hashes(folder.parent)


def written(name, change):
    """A function that changes the bytes of the file `name` in a model's folder."""
    def write(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes() if path.exists() else b""))
    return write


UNET = "unet/diffusion_pytorch_model.safetensors"
DAMAGES = {
    "truncated": (written(UNET, lambda whole: whole[:len(whole) // 2]), "was changed or damaged"),
    "one byte": (written(UNET, lambda whole: whole[:999] + bytes([whole[999] ^ 1]) + whole[1000:]), "was changed or damaged"),
    "empty": (written(UNET, lambda whole: b""), "was changed or damaged"),
    "pickle renamed": (written(UNET, lambda whole: pickle.dumps([1])), "was changed or damaged"),
    "pickle planted": (written("unet/model.bin", lambda whole: pickle.dumps([1])), "remove it"),
    "missing": (lambda folder: (folder / UNET).unlink(), "is missing"),
    "wrong shape": (damage_shape, "could not be read"),
}


def test_damaged_weights_are_told_and_whole_ones_are_taken_up_without_a_new_start(tmp_path, tiny_folder, reference):
    """With every ImageNet backbone of LPIPS damaged, too: the stickers' own takes their place, under its own name."""
    shipped, home = tmp_path / "shipped", tmp_path / "torch" / "hub" / "checkpoints"
    home.mkdir(parents=True)
    for name, content in zip(BACKBONES.values(), (b"", b"PK\x03\x04 cut off", os.urandom(5000))):
        (home / name).write_bytes(content)
    shutil.copytree(tiny_folder.parent, shipped)
    DAMAGES["truncated"][0](shipped / "model")
    with serve(tmp_path, ("tests/tiny_app.py",), TINY=str(shipped / "model"), TORCH_HOME=str(tmp_path / "torch")) as server:
        wait(lambda: server.health()[1]["state"] == "degraded")
        assert server.health()[0] == 503 and "was changed or damaged" in server.health()[1]["reason"]
        for name, (damage, sentence) in DAMAGES.items():
            with LEDGER.fault(name):
                shutil.rmtree(shipped)
                shutil.copytree(tiny_folder.parent, shipped)
                damage(shipped / "model")
                told = server.compare(asked(7))
                assert told["state"] == "failed" and sentence in told["sentence"], (name, told["sentence"])
        shutil.rmtree(shipped)
        shutil.copytree(tiny_folder.parent, shipped)
        with LEDGER.fault("LPIPS backbones"):
            told = server.compare(asked(7, "full,tome"))
            assert {row["lpips_name"] for row in told["rows"]} == {"LPIPS (stickers backbone)"}
            assert picture(told["rows"][0]) == reference(7) and server.health() == (200, {**server.health()[1], "state": "ready", "reason": ""})


TORCHVISION = 'raise RuntimeError("operator torchvision::nms does not exist")'
SMALL = 'mount -t tmpfs -o size=4m,nr_inodes=200 tmpfs "$0" && exec "$@"'


@pytest.mark.skipif(subprocess.run(["sh", "-c", "unshare -rm true"], capture_output=True).returncode != 0, reason="no name spaces here, so no small disk")
def test_a_full_disk_and_a_broken_torchvision(tmp_path, tiny_folder, reference):
    """The pictures are there all the same. With room on the disk everything is as before."""
    broken, disk = tmp_path / "broken" / "torchvision", tmp_path / "disk"
    broken.mkdir(parents=True)
    disk.mkdir()
    (broken / "__init__.py").write_text(TORCHVISION)
    values = tiny_page().ask.values(Request("a cat", seed=7, steps=2, size=128, methods="full,tome", repeats=1))
    path = os.pathsep.join([str(broken.parent), os.environ["PYTHONPATH"]])
    with serve(disk, ("tests/tiny_app.py",), ("unshare", "-rm", "sh", "-c", SMALL, str(disk)), TINY=str(tiny_folder), PYTHONPATH=path) as server:
        inside = Path(f"/proc/{server.process.pid}/root", *disk.parts[1:])
        with LEDGER.fault("torchvision"):
            told = server.compare(asked(7, "full,tome"))
            assert picture(told["rows"][0]) == reference(7) and "torchvision" in told["rows"][1]["metrics"]["lpips"]["why"]
            status, said = server.health()
            assert (status, said["state"]) == (200, "degraded") and "torchvision" in said["reason"]
        with LEDGER.fault("disk full"):
            fill(inside / "filler")
            told = server.page("run", values, "full")
            assert told["status"]["sentence"] == "Done. There is no archive to download: the disk is full."
            assert picture(told["board"]["rows"][0]) == reference(7) and "disk is full" in server.health()[1]["reason"]
            told = server.page("look_inside", [], "full")["inside"]
            assert [row["error"] for row in told["rows"]] == ["The disk is full: make room and try again."] * 2
            crowd(inside)
            told = server.page("look_inside", [], "full")["status"]
            assert told["sentence"] == "The look inside could not be finished: the disk is full."
            answer = HTTP.post(f"{server.address}/gradio_api/upload", files={"files": ("a.png", bytes(2**20))})
            assert answer.status_code >= 400
            for file in inside.glob("filler*"):
                file.unlink()
            assert server.page("run", values, "full")["status"]["sentence"] == "Done." and "disk" not in server.health()[1]["reason"]
            told = server.page("look_inside", [], "full")
            assert told["status"]["sentence"] == "Done." and not any(row["error"] for row in told["inside"]["rows"])


def fill(path):
    """Writes until the disk takes no more."""
    with suppress(OSError), open(path, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def crowd(folder):
    """Makes empty files until the disk has no place for the name of another one."""
    with suppress(OSError):
        for i in range(1000):
            (folder / f"filler{i}").touch()


def test_sigterm_ends_a_server_at_work_at_once(tmp_path, tiny_folder):
    with serve(tmp_path, ("tests/tiny_app.py",), TINY=str(tiny_folder)) as server, LEDGER.fault("SIGTERM"):
        with suppress(httpx.TransportError), occupied(server):
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(PATIENCE) == -signal.SIGTERM
