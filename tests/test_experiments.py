"""The table of what else might have been done to train the embedded model: each change is real, and ends with its run."""

import json
import time

import pytest
import torch

from fastviz.stickers import card, experiments, heeded, loop, parts, teacher


@pytest.mark.parametrize("name", experiments.VARIANTS)
def test_a_change_is_of_what_is_there_and_is_put_back(name):
    changes, options = experiments.VARIANTS[name]
    before = {(module, attribute): getattr(module, attribute) for module, values in changes() for attribute in values}
    assert set(options) <= {"share", "size", "then"} and (before or options or name == experiments.AS_IT_IS)
    with experiments.changed(name):
        for module, attribute in before:
            assert getattr(module, attribute) is not before[module, attribute]
        torch.manual_seed(0)
        model, alphas = teacher.Teacher(), parts.scheduler().alphas_cumprod
        batch = torch.randn(2, 4, 16, 16), torch.randint(5, 90, (2, parts.LENGTH))
        value, _ = teacher.noise_loss(alphas, 1.0)(model, batch)
        value.backward()
        assert torch.isfinite(value) and all(teacher.optimizers(model, 1e-3))
    assert all(getattr(*key) is value for key, value in before.items())


def test_minutes_are_those_that_the_process_works_for():
    with experiments.changed(experiments.AS_IT_IS):
        begin = loop.clock()
        time.sleep(0.3)
        assert loop.clock() - begin < 0.1
        while loop.clock() - begin < 0.2:
            pass
    assert abs(loop.clock() - time.time()) < 1


def test_the_command_keeps_what_it_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiments, "FILE", tmp_path / "experiments.json")
    for module, name, value in ((experiments, "SIZE", 3), (experiments, "SCENES", 2), (experiments, "HEEDED", 2), (heeded, "MEAN", 2), (loop, "RECENT", 0)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(card, "write", lambda: written.append(json.loads(experiments.FILE.read_text())))
    written, names = [], [experiments.AS_IT_IS, "windows for half of the time, then scenes"]
    monkeypatch.setattr(experiments, "VARIANTS", {name: experiments.VARIANTS[name] for name in names})
    experiments.main(0.02, names[1:])
    assert card.tried(written.pop()) == ""  # not before it is whole
    experiments.main(0.02, names)
    rows = json.loads(experiments.FILE.read_text())["rows"]
    assert [row["name"] for row in rows] == names and all(row["steps"] > 0 for row in rows)
    assert all(0 < loss < 20 for row in rows for loss in row["losses"].values())
    table = capsys.readouterr().out.splitlines()[-4:]
    assert table[0].startswith("| | steps |") and names[1] in table[-1] and " % |" in table[-1]
    told, = written
    assert card.tried(None) == "" and f"--minutes 0.02 --threads {told['threads']}`" in card.tried(told) and "\n".join(table) in card.tried(told)
    experiments.main(0.02, names)
    assert json.loads(experiments.FILE.read_text())["rows"] == rows
    experiments.FILE.write_text(json.dumps(told | {"device": "another"}))
    experiments.main(0.02, names[:1])
    assert len(json.loads(experiments.FILE.read_text())["rows"]) == 1  # what another machine measured is no comparison
    with pytest.raises(SystemExit, match="There is no experiment 'luck'"):
        experiments.main(0.02, ["luck"])
