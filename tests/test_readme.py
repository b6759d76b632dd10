"""README's examples, run as they stand there."""

import re
from pathlib import Path

from fastviz import models

ADDRESS = "http://127.0.0.1:7860"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", Path(__file__).parents[1].joinpath("README.md").read_text(), re.DOTALL | re.MULTILINE)


def example(word):
    return next(text for text in EXAMPLES if word in text)


def test_every_example_is_run_here():
    assert len(EXAMPLES) == 3


def test_three_lines_of_python(tiny_pipe, monkeypatch, capsys):
    monkeypatch.setitem(models._loaded, "stickers", tiny_pipe)
    exec(example("from fastviz import"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" s ")[0].rpartition(" ")[0] for line in lines] == ["Full model", "Token merging", "Fewer steps"]
    assert all(re.search(r" [0-9.]+ s [0-9.e-]+$", line) for line in lines), lines


def test_a_program_asks_the_page(server, capsys):
    assert ADDRESS in example("gradio_client")
    exec(example("gradio_client").replace(ADDRESS, server.address), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 3 and lines[-1].startswith("Done") and re.search(r"\[[0-9.]+, [0-9.]+\]$", lines[-1])


def test_the_embedded_model_needs_diffusers_alone(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    told = {}
    exec(example("StableDiffusionPipeline"), told)
    assert sum(each.numel() for each in told["pipe"].unet.parameters()) > 1e6
