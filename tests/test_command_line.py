"""The command line as a person and a program meet it: files, an aligned table, one JSON line, sentences and exit codes."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from fastviz import __main__ as command
from fastviz import models, store, trace, verified
from fastviz.metrics import Unavailable
from fastviz.patch import replaced


@pytest.fixture
def tiny(tiny_pipe, monkeypatch):
    monkeypatch.setitem(models._loaded, "stickers", tiny_pipe)
    return tiny_pipe


QUICK = ["--size", "128", "--steps", "3", "--repeats", "1"]


def test_compare_writes_prints_and_ends_with_one_json_line(tiny, tmp_path, capsys):
    out = tmp_path / "runs" / "demo"
    code = command.main(["compare", "a cat and a pizza on the beach, astronaut", "--seed", "7", "--methods", "full,tome,few_step(steps=2)",
                         "--out", str(out), *QUICK])
    told = capsys.readouterr()
    lines = told.out.splitlines()
    found = json.loads(lines[-1])
    assert code == 0 and found["command"] == "compare" and found["out"] == str(out)
    assert [row["stack"] for row in found["rows"]] == ["full", "tome", "few_step(steps=2)"]
    assert [line.split()[0] for line in lines[2:5]] == ["full", "tome", "few_step(steps=2)"]
    assert {"run.json", "table.csv", "figure.png", "00-full.png", "01-tome.png"} <= {path.name for path in out.iterdir()}
    assert json.loads((out / "run.json").read_text())["rows"][1]["seconds"] == found["rows"][1]["seconds"]
    assert store.read_png(out / "01-tome.png").seed == 7
    assert "Unknown words: astronaut" in told.err and "Token merging: step 0 of 3, run 1 of 1, row 2 of 3" in told.err
    assert "Traceback" not in told.err


def test_records_of_every_row_lie_beside_its_picture(tiny, tmp_path, capsys):
    assert command.main(["compare", "a cat", "--methods", "full,tome", "--out", str(tmp_path), "--records", *QUICK]) == 0
    assert "tome.labels" in trace.load(tmp_path / "01-tome.npz").channels
    assert "attention.cross" in trace.load(tmp_path / "00-full.npz").channels
    assert Image.open(tmp_path / "inside.png").width > 1000


def test_a_row_that_fails_makes_the_exit_code_1_and_the_rest_is_there(tiny, capsys):
    def broken(*args, **kwargs):
        raise MemoryError
    with replaced(tiny.vae, decode=broken):
        code = command.main(["compare", "a cat", "--methods", "tome", *QUICK])
    told = capsys.readouterr()
    assert code == 1 and "Out of memory at 128 px" in told.out
    assert all(row["error"] for row in json.loads(told.out.splitlines()[-1])["rows"])


@pytest.mark.parametrize("arguments", [[""], ["a" * 301], ["\udcff"], ["cat", "--seed", "-1"], ["cat", "--seed", "x"], ["cat", "--seed", "1.5"],
                                       ["cat", "--steps", "0"], ["cat", "--guidance", "nan"], ["cat", "--size", "200"], ["cat", "--methods", "no"],
                                       ["cat", "--model", "../x"], ["cat", "--repeats", "1e400"], ["cat", "--records"]], ids=ascii)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, capsys):
    assert command.main(["compare", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and told.err.endswith(".\n")


def test_options_that_do_not_exist_are_refused(capsys):
    for arguments in (["compare", "cat", "--sed", "7"], ["doctor", "--all"], ["fly"], []):
        with pytest.raises(SystemExit) as told:
            command.main(arguments)
        assert told.value.code == 2


def test_a_folder_that_cannot_be_written_is_told_before_anything_runs(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(models, "load", lambda key: pytest.fail("loaded"))
    assert command.main(["compare", "a cat", "--out", str(tmp_path / "file" / "below"), *QUICK]) == 1
    assert "below" in capsys.readouterr().err


def test_stopping_and_missing_models_end_with_a_sentence(tiny, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt
    with replaced(tiny.unet, forward=interrupted):
        assert command.main(["compare", "a cat", *QUICK]) == 130
    assert "Stopped." in capsys.readouterr().err

    def missing(key):
        raise verified.BadModel("There is no folder: get the complete project again.")
    monkeypatch.setattr(models, "load", missing)
    assert command.main(["compare", "a cat", *QUICK]) == 1
    assert capsys.readouterr().err.endswith("There is no folder: get the complete project again.\n")


def test_a_fault_of_the_program_is_not_hidden(tiny, monkeypatch):
    monkeypatch.setattr(store, "report", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command.main(["compare", "a cat", "--methods", "full", *QUICK])


def test_doctor_says_what_runs_here(capsys):
    assert command.main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("device", "torch", "diffusers", "LPIPS"))


def test_fetch_tells_why_it_failed_and_where_the_file_is(capsys, monkeypatch, tmp_path):
    from fastviz import metrics

    def offline(net, on_progress):
        raise Unavailable(f"No network for {net}.")
    monkeypatch.setattr(metrics, "fetch_backbone", offline)
    assert command.main(["fetch", "lpips", "--net", "squeeze"]) == 1
    assert capsys.readouterr().err == "No network for squeeze.\n"
    monkeypatch.setattr(metrics, "fetch_backbone", lambda net, on_progress: on_progress(1, 2) or tmp_path / net)
    assert command.main(["fetch", "lpips"]) == 0
    assert str(tmp_path / "alex") in capsys.readouterr().out


def test_help_needs_no_torch():
    code = "import sys; from fastviz.__main__ import main\ntry: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=models.ROOT)
    assert done.returncode == 0 and "compare" in done.stdout and "bench" in done.stdout


def test_bench_gets_its_own_options(monkeypatch):
    from fastviz.bench import local

    seen = []
    monkeypatch.setattr(local, "main", lambda rest: seen.append(rest))
    assert command.main(["bench", "local", "--steps", "5", "--no-page"]) == 0
    assert seen == [["--steps", "5", "--no-page"]]


@pytest.mark.parametrize("program", [["-m", "fastviz", "doctor"], ["-m", "fastviz.supervise"], ["app.py"]])
def test_a_python_that_nothing_was_installed_for_is_told_from_the_right_one(program):
    told = subprocess.run([sys.executable, "-S", *program], cwd=models.ROOT, capture_output=True, text=True, timeout=60)  # -S: no site-packages
    assert told.returncode == 1 and told.stderr.splitlines()[-1].endswith("`make app` installs everything into .venv, and "
                                                                          "`. .venv/bin/activate` turns to that Python.")
