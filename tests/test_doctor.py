"""The report of what runs here: true of this machine, plain enough for JSON, with advice for what is missing."""

import importlib.metadata
import json
import os
import shutil

import pytest
import torch

from fastviz import doctor, metrics, models, verified


@pytest.fixture(autouse=True)
def assets(tmp_path, tiny_pipe, monkeypatch):
    """A verified model as the only one in the table, and an empty hub folder."""
    tiny_pipe.save_pretrained(tmp_path / "assets/model")
    verified.write_hashes(tmp_path / "assets")
    entry = models.Model("tiny", "Tiny", str(tmp_path / "assets/model"), 128, (128,), 4, 3.0, "Apache-2.0")
    monkeypatch.setattr(models, "MODELS", {"tiny": entry})
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    metrics.perceptual.cache_clear()
    yield tmp_path / "assets"
    metrics.perceptual.cache_clear()


def test_report_is_true_of_this_machine():
    told = doctor.report()
    assert json.loads(json.dumps(told))["device"] == models.device().type
    assert told["kernels"]["math"] and told["threads"] == torch.get_num_threads() and told["cores"] == os.cpu_count()
    assert told["kernels"]["cuDNN"] <= torch.cuda.is_available()
    assert told["versions"]["torch"] == (importlib.metadata.version("torch"), "2.10", True)
    assert told["models"] == {"tiny": "verified"}
    assert told["backbones"]["vgg"] == "no vgg16-397923af.pth"


def test_advice_for_a_damaged_and_for_a_missing_model(assets):
    path = assets / "model/unet/config.json"
    path.write_text(path.read_text() + " ")
    assert str(path) in doctor.report()["advice"][0]
    shutil.rmtree(assets / "model")
    assert "no folder" in doctor.report()["models"]["tiny"]


def test_a_version_below_the_floor_is_told_with_its_reason(monkeypatch):
    monkeypatch.setitem(doctor.FLOORS, "torch", ("99", "CVE-0000"))
    monkeypatch.setitem(doctor.FLOORS, "not-a-package", ("1.0", "we need it"))
    told = doctor.report()
    assert not told["versions"]["torch"][2] and told["versions"]["not-a-package"][0] is None
    assert any("torch 99 or later (CVE-0000)" in sentence and "too old" in sentence for sentence in told["advice"])
    assert any("not-a-package 1.0" in sentence and "missing" in sentence for sentence in told["advice"])


def test_text_shows_every_value_and_the_advice():
    told = doctor.report()
    shown = doctor.text(told)
    for value in (told["device_name"], told["dtype"], told["lpips"], *told["advice"], *told["backbones"].values()):
        assert value in shown
    assert all(name in shown for name, runs in told["kernels"].items() if runs)
    assert "fetch lpips" in shown


def test_text_when_nothing_is_missing():
    told = {**doctor.report(), "judge": "verified", "backbones": {"alex": "ready"}}
    assert doctor.advice(told) == []
    assert doctor.text({**told, "advice": []}).endswith("Nothing is missing.")
