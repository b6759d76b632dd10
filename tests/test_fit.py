"""The commands that fit and measure schedules, and the pictures that explain them, on the tiny pipeline."""

import contextlib
import io
import json

import numpy as np
import pytest
from conftest import at_home
from diffusers.configuration_utils import FrozenDict
from PIL import Image

from fastviz import __main__ as command
from fastviz import fitted, models, views
from fastviz.bench import olss as bench
from fastviz.fit import olss as fit
from fastviz.fit import calibrate, solvers, work
from fastviz.methods import olss
from fastviz.patch import replaced
from fastviz.schedulers import OLSSScheduler, alphas_of, ddim
from fastviz.search import prompts
from fastviz.stickers import parts

CONFIG = dict(parts.scheduler().config)
QUICK = ["--size", "128", "--reference", "8", "--prompts", "1", "--held-out", "2", "--batch", "1", "--refit"]


@pytest.fixture(scope="module")
def home(tiny_pipe, tmp_path_factory):
    """The tiny pipeline in the place of the embedded model, with a folder of its own."""
    with pytest.MonkeyPatch.context() as patch, \
            at_home(tiny_pipe, tmp_path_factory.mktemp("assets") / "stickers" / "model") as folder:
        patch.setitem(models._loaded, "stickers", tiny_pipe)
        yield folder


@pytest.fixture(scope="module")
def tiny(tiny_pipe, home):
    """The calls of the tiny pipeline's network."""
    calls = []
    handle = tiny_pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


@pytest.fixture(scope="module")
def done(tiny, home):
    """What one call of the command left: (stdout's lines, stderr, folder of figures, calls of the network)."""
    figures, out, err = home.parent / "figures", io.StringIO(), io.StringIO()
    tiny.clear()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert command.main(["fit", "olss", "--steps", "2,3", "--figures", str(figures), *QUICK]) == 0
    return out.getvalue().splitlines(), err.getvalue(), figures, len(tiny)


def test_fit_makes_a_file_for_every_number_and_search(done, home):
    lines, progress, _, _ = done
    told = json.loads(lines[-1])
    assert [(one["steps"], one["search"]) for one in told["fits"]] == [(2, "olss"), (2, "olss-p"), (3, "olss"), (3, "olss-p")]
    for one in told["fits"]:
        assert one["file"] == str(olss.path_of(home, one["search"], one["steps"], 3.0))
        scheduler = olss.load(home, one["search"], one["steps"], 3.0)
        says = scheduler.config.fitted
        assert list(scheduler.config.timesteps) == one["timesteps"] and says["weights"] == fitted.weights(home)
        assert (says["guidance"], says["size"], says["reference"], says["search"]) == (3.0, 128, 8, one["search"])
        measured = says["measured"][fit.NAMES[one["search"]]]
        assert len(measured["gaps"]) == one["steps"] and measured["gaps"][-1] == pytest.approx(measured["rmse"], abs=2e-6)
        assert measured["rmse"] == pytest.approx(told["rmse"][str(one["steps"])][fit.NAMES[one["search"]]], abs=1e-6)
    assert set(told["rmse"]["2"]) == {"OLSS", "OLSS-P"} | set(solvers.peers(CONFIG, 2))
    assert told["command"] == "fit" and told["seconds"] > 0 and (told["reference"], told["prompts"], told["held_out"]) == (8, 1, 2)
    assert progress == "[....................] 3 full runs of 8 steps\n"
    table = lines[2:lines.index("", 2)]
    assert table[0].split() == ["2", "3"] and [line.split("  ")[0] for line in table[1:]] == list(told["rmse"]["2"])


def test_numbers_of_steps_share_the_full_runs_and_the_progress_counts_them(done):
    asked = [[1], [1], [1]]
    holds, told = len(calibrate.HOLDS), fit.amount(CONFIG, asked, [2, 3], ["olss", "olss-p"], 8, True)
    climbs = sum(n * (calibrate.CALLS // n) for n in (2, 3))
    assert told == 3 * 8 + 5 * (2 * (holds + 2 * 3 + 1) + 2 * holds + 6) + climbs
    assert told - climbs - 5 * 2 * 2 <= done[3] <= told  # a climb ends where no move helps, and the last hold has one neighbour


def test_progress_tells_the_time_that_is_left_at_the_pace_so_far(monkeypatch, capsys):
    now = iter((0, 0, 0, 90, 90, 90, 100, 100))
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    progress = work.Work(8)
    progress.say("2 steps")
    progress.tick(2)
    progress.tick(2)
    assert capsys.readouterr().err == "[....................] 2 steps\n[#####...............] 2 steps, about 4 min left\n"


def test_fit_draws_pictures(done):
    drawn = sorted(path.name for path in done[2].iterdir())
    assert drawn == sorted(f"{search}-{n}-guidance-3-{kind}.png" for search in ("olss", "olss-p") for n in (2, 3)
                           for kind in ("coefficients", "distance", "timesteps"))
    for name in drawn:
        with Image.open(done[2] / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 10


@pytest.mark.parametrize("arguments, said", (
    (["--steps", "0"], "--steps takes whole numbers"), (["--steps", "4,x"], "--steps takes"), (["--steps", "101"], "1 to 100"),
    (["--steps", "30", "--reference", "25"], "1 to 25"), (["--reference", "30"], "must divide 1000"), (["--search", "best"], "--search takes"),
    (["--guidance", "nan"], "Guidance must be"), (["--guidance", "99"], "Guidance must be"), (["--prompts", "0"], "--prompts"),
    (["--held-out", "1"], "--held-out"), (["--size", "200"], "Size must be"),
    (["--prompts-file", "FEW"], "has 1 different prompts"), (["--prompts-file", "LONG"], "too long")))
def test_what_cannot_be_fitted_is_refused_before_anything_runs(tiny, tmp_path, capsys, arguments, said):
    (tmp_path / "FEW").write_text("a cat\n \na cat\n")
    (tmp_path / "LONG").write_text("\n".join("cat " * i for i in range(90, 105)))
    arguments = [str(tmp_path / each) if each in ("FEW", "LONG") else each for each in arguments]
    tiny.clear()
    assert command.main(["fit", "olss", "--out", str(tmp_path / "out"), *arguments]) == 2
    told = capsys.readouterr()
    assert said in told.err and told.err.count("\n") == 1 and told.out == "" and not tiny


def test_a_model_without_a_folder_is_refused_before_anything_runs(tiny, tiny_pipe, capsys):
    with replaced(tiny_pipe, _internal_dict=FrozenDict({**tiny_pipe.config, "_name_or_path": ""})):
        tiny.clear()
        assert command.main(["fit", "olss", "--steps", "2", *QUICK]) == 2
        assert "has no folder" in capsys.readouterr().err and not tiny
        assert command.main(["bench", "olss"]) == 2
        assert "this model has none" in capsys.readouterr().err and not tiny


def test_nothing_is_fitted_chosen_and_measured_on_the_same_run(tmp_path):
    (tmp_path / "lines").write_text("\n".join(f"a cat {i}" for i in range(15)))
    for more in ([], ["--prompts-file", str(tmp_path / "lines")]):
        parts = fit.asked_for(fit.arguments().parse_args(more))
        assert list(map(len, parts)) == [9, 2, 4]
        asked = [one for part in parts for one in part]
        assert len({one.seed for one in asked}) == len({one.prompt for one in asked}) == 15
        assert max(one.seed for one in asked) < bench.SEED
    assert prompts.read("stickers", 9, 6, seed=fit.SEED)[1] != prompts.read("stickers", 9, 6, seed=bench.SEED)[1]


# The benchmark

def run_bench(capsys, *more):
    code = command.main(["bench", "olss", "--steps", "2,3", "--size", "128", "--reference", "5", "--batch", "2", *more])
    told = capsys.readouterr()
    return code, told.out.splitlines(), told.err


def test_bench_measures_every_schedule_and_goes_on_where_it_was_stopped(tiny, done, home, capsys, tmp_path):
    out = tmp_path / "runs" / "olss.json"
    code, lines, _ = run_bench(capsys, "--prompts", "1", "--fine", "10", "--fine-prompts", "2", "--out", str(out))
    assert code == 0 and json.loads(lines[-1])["prompts"] == 1
    tiny.clear()
    code, lines, progress = run_bench(capsys, "--prompts", "4", "--fine", "10", "--fine-prompts", "2", "--out", str(out))
    names = ["OLSS", "OLSS-P", *solvers.peers(CONFIG, 2)]
    found = json.loads(lines[-1])
    assert code == 0 and len(tiny) == 2 * (5 + 8 * (2 + 3)) + 10  # two prompts side by side; the first is not run again
    assert "prompts 2 to 3 of 4" in progress and json.loads(out.read_text()) == found
    assert [(row["steps"], row["name"]) for row in found["rows"]] == [(5, "Full run"), *((n, name) for n in (2, 3) for name in names)]
    assert found["prompts"] == 4 and {row["fine_prompts"] for row in found["rows"]} == {3} and "steps of DPM-Solver++ 2M, of 3 prompts" in lines[0] and found["lpips_name"].startswith("LPIPS") and found["environment"]["torch"]
    for row in found["rows"]:
        assert row["calls"] == row["steps"] and 0 <= row["match"] <= 1 and row["rmse_fine"] > 0 and row["seconds"] > 0
        assert (row["rmse"] == row["lpips"] == 0) == (row["name"] == "Full run")
    records = json.loads(out.with_suffix(".state.json").read_text())["state"]["records"]
    assert len(records) == len({record["seed"] for record in records}) == 4
    mean = np.mean([record["rows"]["3"]["OLSS"]["rmse"] for record in records])
    assert next(row["rmse"] for row in found["rows"] if (row["steps"], row["name"]) == (3, "OLSS")) == pytest.approx(mean)
    text = "\n".join(lines)
    assert all(name in text for name in names) and f"{mean:.4f}" in text
    code, lines, refused = run_bench(capsys, "--prompts", "3", "--fine-prompts", "2", "--out", str(out))
    assert code == 2 and "other settings (fine)" in refused


def test_bench_draws_every_schedule_and_what_all_draw_with_equal_steps(tiny, done, home, capsys, tmp_path):
    code, _, _ = run_bench(capsys, "--prompts", "2", "--figures", str(tmp_path / "figures"))
    kinds = [f"{search}-{n}-guidance-3-{kind}" for search in ("olss", "olss-p") for n in (2, 3) for kind in ("timesteps", "coefficients", "distance")]
    assert code == 0 and sorted(path.stem for path in (tmp_path / "figures").iterdir()) == sorted([*kinds, "equal-steps-2", "equal-steps-3"])


def test_bench_names_the_command_for_coefficients_that_are_missing(tiny, done, home, capsys):
    tiny.clear()
    assert command.main(["bench", "olss", "--steps", "2,7", "--size", "128"]) == 2
    told = capsys.readouterr().err
    assert "python -m fastviz fit olss --model stickers --steps 7 --guidance 3`" in told and told.count("\n") == 1 and not tiny


def test_bench_refuses_prompts_that_were_fitted_to(tiny, done, home, capsys, tmp_path):
    known = OLSSScheduler.from_pretrained(olss.path_of(home, "olss", 2, 3.0)).config.fitted["prompts"]
    (tmp_path / "lines").write_text(f"a cat\n{known[0]}\n")
    assert command.main(["bench", "olss", "--steps", "2", "--size", "128", "--prompts", "2", "--prompts-file", str(tmp_path / "lines")]) == 2
    assert "measure on other prompts" in capsys.readouterr().err


# The pictures

def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda each: hasattr(each, "get_text")) if text.get_text()]


def coefficients(n):
    wx, we = ddim(alphas_of(CONFIG, solvers.reference(CONFIG, 20).timesteps[:n].tolist()))
    return (wx, we), ([1.1 * x for x in wx], [[0.5 * x for x in row] for row in we])


@pytest.mark.parametrize("dark", (False, True))
def test_timesteps_are_dots_where_the_network_is_asked(dark):
    chosen = {"OLSS": [999, 700, 200], "Even": [999, 666, 333]}
    figure = views.timesteps(chosen, alphas_of(CONFIG, range(1000))[:-1], dark)
    dots = [line for line in figure.axes[0].lines if line.get_marker() != "None"]
    assert [list(line.get_xdata()) for line in dots] == list(chosen.values()) and {"OLSS", "Even", "100%", "0%"} <= set(texts(figure))
    assert views.png(figure)[:4] == b"\x89PNG"


@pytest.mark.parametrize("n", (1, 4, 20))
def test_triangles_show_what_differs_from_ddim(n):
    plain, changed = coefficients(n)
    figure = views.triangle(changed, plain)
    fitted, own, ratio = [np.ma.filled(axes.images[0].get_array(), np.nan) for axes in figure.axes]
    inside = np.tril(np.ones((n, n + 1), bool), 1)
    assert (np.isnan(ratio) == ~inside).all() and fitted.shape == (n, n + 1)
    assert np.allclose(ratio[:, 0], 1.1) and np.allclose(ratio[:, 1:][inside[:, 1:]], 0.5)
    assert np.allclose(own[:, 0], 1) and all(np.allclose(column[inside[:, j]], column[inside[:, j]][0]) for j, column in enumerate(own.T))
    assert ("0.50" in texts(figure)) == (n <= 12) and views.png(figure)


def test_distances_are_drawn_worst_first_and_alike_for_one_solver():
    gaps = {"OLSS": [0.1, 0.2], "DDIM": [0.3, 0.6], "DDIM, AYS timesteps": [0.3, 0.4]}
    axes = views.distance(gaps, dark=True).axes[0]
    assert [line.get_label() for line in axes.lines] == ["0.600  DDIM", "0.400  DDIM, AYS timesteps", "0.200  OLSS"]
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.3, 0.6], [0.3, 0.4], [0.1, 0.2]]
    first, second, third = axes.lines
    assert first.get_color() == second.get_color() != third.get_color() and first.get_linestyle() != second.get_linestyle()
