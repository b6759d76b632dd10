"""How settled ranks are: more rounds come nearer to the limit, on attention that the method really ranked."""

import json

import pytest
import torch

from fastviz import gwpr, models
from fastviz.bench import rank
from fastviz.request import Request


@pytest.fixture(scope="module")
def told():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 4, 64, 8, generator=generator) for _ in range(2))
    return q, k, rank.measured(2 * q, k)


def test_the_limit_is_the_leading_eigenvector(told):
    q, k, _ = told
    graph = rank.Counted(2 * q, k)
    limit = gwpr.rank(graph, **rank.LIMIT)
    values, vectors = torch.linalg.eig(graph.map.double().mT)
    at = values.abs().argmax(-1)
    lead = vectors.gather(3, at[..., None, None].expand(-1, -1, 64, 1))[..., 0].real
    assert (limit - lead / lead.sum(-1, keepdim=True)).abs().sum(-1).max() < 1e-4


def test_more_rounds_are_nearer(told):
    found = told[2]
    plain = [found[f"plain, {rounds} round{'s' * (rounds > 1)}"] for rounds in (1, 2, 4, 8)]
    assert [each["rounds"] for each in plain] == [1, 2, 4, 8]
    assert all(a["distance"] > b["distance"] for a, b in zip(plain, plain[1:])) and plain[-1]["agreement"] > 0.9
    assert found["by 32 strips, 1 round"]["distance"] < plain[0]["distance"] < found["plain, 1 round of every 4th query"]["distance"]
    assert found["by 32 strips, 1 round of every 4th query"]["rounds"] == 1 / 4 and found[rank.SETTLED]["distance"] < 1e-5
    assert found["by 32 strips, 1 round of every 2nd head"]["rounds"] == 1 / 2


def test_heads_of_both_halves_become_one_as_in_the_method(told):
    scores = gwpr.normalised(torch.rand(1, 6, 16, generator=torch.Generator().manual_seed(1)))
    by_hand = (scores[0, :3].square().mean(0).sqrt() + scores[0, 3:].square().mean(0).sqrt()) / 2
    assert rank.importance(scores)[0] == pytest.approx(by_hand)


def test_command_prints_what_it_measured(tiny_pipe, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(models.MODELS, "tiny", models.Model("tiny", "Tiny", "none", 128, (128, 256), 10, 3.0, "Apache-2.0"))
    monkeypatch.setattr(models, "_loaded", {"tiny": tiny_pipe})
    prompts, out = tmp_path / "prompts.txt", tmp_path / "rank.json"
    prompts.write_text("a cat\na dog\n")
    assert rank.main(["--model", "tiny", "--count", "1", "--steps", "5", "--prompts-file", str(prompts), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert found == json.loads(out.read_text()) and found["attentions"] > 0 and found["prompts"] == 1
    assert all(set(arms) == {*rank.ARMS, rank.SETTLED} for arms in found["tokens"].values())
    assert len(rank.graphs(tiny_pipe, Request("a cat", size=128, steps=5, model="tiny", methods="full"))) == found["attentions"]
