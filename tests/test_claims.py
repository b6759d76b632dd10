"""The papers' claims: arms that differ in what is claimed alone, and verdicts that can go either way."""

import json

import pytest

from fastviz import cost, models
from fastviz.bench import claims
from fastviz.request import Request


@pytest.fixture(scope="module")
def asked(tiny_pipe):
    """A request to the tiny pipeline, loaded under the key `tiny`."""
    with pytest.MonkeyPatch.context() as patch:
        entry = models.Model("tiny", "Tiny", "none", 128, (128, 256), 10, 3.0, "Apache-2.0")
        patch.setitem(models.MODELS, "tiny", entry)
        patch.setattr(models, "_loaded", {"tiny": tiny_pipe})
        yield Request("a cat", steps=10, model="tiny", methods="full")


def test_early_and_late_reuse_as_much(tiny_pipe, asked):
    knobs = claims.arms(tiny_pipe, asked)
    early, late = knobs["early"].schedule, knobs["late"].schedule
    assert (early, late) == ("1001111111", "1111111100")


def test_even_pruning_is_as_much_work(tiny_pipe, asked):
    even = claims.even_pruning(tiny_pipe, asked)
    paper, ours = (cost.total(cost.flops(tiny_pipe, asked, (knobs,), 10)) for knobs in (claims.atedm.Knobs(), even))
    whole = cost.total(cost.flops(tiny_pipe, asked, (claims.full.Knobs(),), 10))
    assert even.tau == 0 and 0 < even.ratio < claims.atedm.Knobs().ratio
    assert abs(ours - paper) < 0.03 * (whole - paper)


def rows(better, other, arms, figure="psnr"):
    return [{name: {"psnr": 20.0, "match": 1.0} for name in ("early", "late", "self", "cross", "even", "merged", "full")} |
            {arms[0]: {"psnr": 20.0, "match": 1.0} | {figure: a}, arms[1]: {"psnr": 20.0, "match": 1.0} | {figure: b}}
            for a, b in zip(better, other)]


@pytest.mark.parametrize("better, other, verdict", (
    ([30.0, 31, 32], [20.0, 22, 21], "holds"), ([20.0, 22, 21], [30.0, 31, 32], "fails"), ([20.0, 30, 25], [25.0, 25, 25], "open")))
def test_a_verdict_follows_the_interval(better, other, verdict):
    first = claims.tested(rows(better, other, ("late", "early")))[0]
    assert first["verdict"] == verdict and first["interval"][0] <= first["gain"] <= first["interval"][1]


@pytest.mark.parametrize("better, verdict", (([1.0, 1, 1], "holds"), ([0.5, 0.5, 0], "fails"), ([1.0, 1, 0.8], "open")))
def test_looking_right_allows_for_a_little_loss(better, verdict):
    *_, last = claims.tested(rows(better, [1.0] * 3, ("merged", "full"), "match"))
    assert last["verdict"] == verdict


def test_the_command_prints_a_verdict_for_each_claim(asked, capsys, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n")
    assert claims.main(["--model", "tiny", "--count", "2", "--steps", "5", "--prompts-file", str(prompts),
                        "--out", str(tmp_path / "claims.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = json.loads(lines[-1])
    assert [row["claim"] for row in told["claims"]] == list(claims.CLAIMS) and told["prompts"] == 2
    assert told == json.loads((tmp_path / "claims.json").read_text())
    verdicts = [row["verdict"] for row in told["claims"]]
    assert set(verdicts[:3]) <= {"holds", "fails", "open"} and all(row["claim"] in "\n".join(lines[:-1]) for row in told["claims"])
