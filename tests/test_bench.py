"""The benchmark runs as a whole on the tiny pipeline: every lane, peers included. No test of speed."""

import json
import math
import os
from statistics import median

import numpy as np
import pytest
from PIL import Image

from fastviz import cost, models
from fastviz.bench import local, page, paint, photo
from fastviz.request import Request, parse_stack

REQUIRED = os.environ.get("FASTVIZ_BROWSER") == "required"
BROWSER = pytest.mark.skipif(not paint.chromium() and not REQUIRED, reason="no Chromium here: install it, for example apt-get install chromium")


@pytest.fixture(scope="module")
def asked(tiny_pipe):
    """A request to the tiny pipeline, loaded under the key `tiny`."""
    with pytest.MonkeyPatch.context() as patch:
        entry = models.Model("tiny", "Tiny", "none", 128, (128, 256), 4, 3.0, "Apache-2.0")
        patch.setitem(models.MODELS, "tiny", entry)
        patch.setattr(models, "_loaded", {"tiny": tiny_pipe})
        yield Request("a cat", steps=4, model="tiny", methods="full")


def test_bare_lane_is_the_full_model(tiny_pipe, asked):
    ours, bare = local.ours(tiny_pipe, asked, "full"), local.bare(tiny_pipe, asked, local.BARE)
    assert bare.flops == ours.flops == cost.total(cost.flops(tiny_pipe, asked, parse_stack("full"), 4)) > 0
    assert ours.run(asked)[1].tobytes() == bare.run(asked)[1].tobytes()


@pytest.mark.parametrize("make", [local.tomesd_lane, local.broadcast_lane])
def test_peers_do_less_repeat_themselves_and_leave_the_pipeline_alone(tiny_pipe, asked, make):
    full = local.ours(tiny_pipe, asked, "full")
    before, parts = full.run(asked)[1], dict(tiny_pipe.unet.named_modules())
    peer = make(tiny_pipe, asked)
    pictures = [peer.run(asked)[1].tobytes() for _ in range(2)]
    assert pictures[0] == pictures[1] != before.tobytes() and peer.flops < full.flops
    assert full.run(asked)[1].tobytes() == before.tobytes()
    assert dict(tiny_pipe.unet.named_modules()) == parts
    assert not any("diffusers_hook" in name or "tome" in name for part in parts.values() for name in vars(part))


def test_broadcast_reuses_in_every_second_step(tiny_pipe, asked):
    """What it saves is the attention of steps 2, 4, ..."""
    def attention(steps):
        request = Request("a cat", steps=steps, model="tiny", methods="full")
        return local.ours(tiny_pipe, request, "full").flops - local.broadcast_lane(tiny_pipe, request).flops

    assert attention(4) == 2 * attention(2) > 0 and attention(3) == attention(2)


def test_whole_benchmark(asked, capsys, tmp_path):
    (tmp_path / "runs.json").write_text('[{"weights": "other"}]')
    local.main(["--model", "tiny", "--steps", "4", "--repeats", "2", "--no-page", "--out", str(tmp_path / "runs.json")])
    shown = capsys.readouterr().out.splitlines()
    found = json.loads(shown[-1])
    assert json.loads((tmp_path / "runs.json").read_text()) == [found]
    rows = {row["name"]: row for row in found["rows"]}
    assert set(rows) >= {*local.OURS, local.BARE, local.TOMESD, local.BROADCAST}
    for name, row in rows.items():
        assert row["spread"][0] <= row["seconds"] <= row["spread"][1] and math.isfinite(row["speedup"]), name
        assert any(line.startswith(name) for line in shown), name
    assert rows["full"]["flops_share"] == rows[local.BARE]["flops_share"] == 1
    for name in (*local.OURS[1:], local.TOMESD, local.BROADCAST):
        assert rows[name]["flops_share"] < 1 and rows[name]["equal_latency"] in rows, name
    assert set(found["ratios"]) == {f"{a} / {b}" for a, b in local.PAIRS} and found["overhead"] >= 1
    if isinstance(found["lpips_name"], str) and found["lpips_name"].startswith("LPIPS"):
        assert rows["full"]["lpips"] == rows[local.BARE]["lpips"] == 0 < rows[local.TOMESD]["lpips"]


def test_runs_of_the_same_weights_are_kept_together(tmp_path):
    for run in (dict(weights="a", at=1), dict(weights="a", at=2), dict(weights="b", at=3), dict(weights="b", at=4)):
        local.kept(tmp_path / "runs.json", run)
    assert json.loads((tmp_path / "runs.json").read_text()) == [dict(weights="b", at=4), dict(weights="b", at=3)]


def test_rounds_take_every_lane_through_the_same_request_before_the_next(tiny_pipe, asked):
    picture, seen = local.ours(tiny_pipe, asked, "full").run(asked)[1], []

    def lane(name):
        def run(request):
            seen.append((name, request.prompt, request.seed))
            return 1.0, picture
        return local.Lane(name, run)

    local.rounds([lane("full"), lane("b")], [asked, Request("an owl", seed=8, steps=4, model="tiny", methods="full")])
    assert seen == [("full", "a cat", 0), ("b", "a cat", 0), ("full", "an owl", 8), ("b", "an owl", 8)]


def test_a_duel_takes_turns_and_is_a_median():
    seen, times = [], iter([2, 1, 1, 3, 8, 2])  # second, first; first, second; second, first

    def lane(name):
        return local.Lane(name, lambda request: seen.append((name, request)) or (next(times), None))

    assert local.duel(lane("a"), lane("b"), [0, 1, 2]) == median([1 / 2, 1 / 3, 2 / 8])
    assert seen == [("b", 0), ("a", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 2)]


def test_the_page_is_timed_from_a_fresh_process():
    if not (models.MODELS["stickers"].folder / "model_index.json").is_file():
        pytest.skip("the embedded model is not in this checkout")
    found = page.times(Request("a cat", steps=1, size=128))
    assert found.keys() == {"served", "first_picture", "next_picture"} and min(found.values()) > 0


def test_a_server_that_ends_says_why(monkeypatch):
    monkeypatch.setenv("FASTVIZ_PROFILE", "no-such-profile")
    with pytest.raises(RuntimeError, match="no-such-profile"):
        page.times(Request("a cat", steps=1, size=128))


def test_without_a_browser_no_picture_is_taken(monkeypatch, tmp_path):
    monkeypatch.setattr(photo, "chromium", lambda: None)
    with pytest.raises(SystemExit, match="no Chromium"):
        photo.main(["--out", str(tmp_path / "page.webp")])


@BROWSER
def test_the_page_is_photographed_with_its_pictures(tmp_path):
    photo.main(["--prompt", "an owl at night", "--seed", "5", "--width", "900", "--height", "800", "--out", str(tmp_path / "page.webp"),
                "--steps", "2", "--methods", "full,tome"])
    with Image.open(tmp_path / "page.webp") as shown:
        dark = (np.asarray(shown.convert("L")) < 60).mean()
        assert shown.size == (900, 800) and 0.1 < dark < 0.2  # two pictures of the night on a light page


@BROWSER
def test_the_page_is_painted_beside_an_empty_one():
    found, pen, moments = paint.measure(1, Request("a cat and a dog", steps=3, size=128, repeats=1))
    assert set(moments) == set(paint.MOMENTS) and all(0 < seconds < 20 for each in moments.values() for seconds in each)
    assert len(pen) == 1 and pen[0] > 0
    assert found.keys() == {"fastviz", "empty"}
    for told in found.values():
        assert told["spread"][0] == told["seconds"] == told["spread"][1] > 0 and told["files"] > 10 and told["bytes"] > 100_000
