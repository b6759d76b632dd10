"""What is written can be read back as the same request, and what cannot be one is refused with a sentence."""

import csv
import io
import json
import urllib.parse
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastviz import store, views
from fastviz.compare import Row
from fastviz.request import BadRequest, Request, check_prompt

ASKED = Request("猫 and a $pizza$, \"hot\" & new", seed=2**32 - 1, steps=17, guidance=2.5, size=128, repeats=2,
                methods="tome(ratio=0.4,random=false)+attention_reuse,few_step(match=full),few_step(solver=ddim)")
ENVIRONMENT = {"device": "a CPU", "dtype": "float32"}


def picture(shade):
    return Image.new("RGB", (16, 16), (shade, 40, 255 - shade))


def made(index, stack, title, seconds, lpips, **others):
    """A finished Row with figures of its own."""
    return Row(index, stack, title, 5, picture(30 * index), done=True, repeats=2, seconds=seconds, spread=(seconds * 0.9, seconds * 1.2),
               parts={"text": 0.1, "denoising": seconds - 0.3, "decoder": 0.2}, per_step=(seconds / 5,) * 5, speedup=4 / seconds,
               flops=int(seconds * 1e11), flops_per_step=(10,) * 5, flops_share=seconds / 4, peak_bytes=None, lpips_name="LPIPS (squeeze)",
               metrics={"lpips": lpips, "psnr": 20.0, "ssim": 0.5, "match": "The prompt names nothing, that the judge knows."},
               lpips_map=picture(0), difference_map=picture(9), acted={"tome": (6, 5)}, applied=True, **others)


def rows():
    full = made(0, "full", "Full model", 4.0, 0.0)
    full.metrics["psnr"], full.lpips_map, full.difference_map, full.acted = float("inf"), None, None, {}
    return [full, made(1, "tome(ratio=0.4,random=false)+attention_reuse", "Token merging + Attention reuse", 3.0, 0.11),
            made(2, "few_step(match=full)", "Fewer steps", 2.0, 0.2), made(3, "few_step(solver=ddim)", "Fewer steps", 1.0, 0.4),
            Row(4, "tome", "Token merging", 5, error="Out of memory at 128 px: choose a smaller size.", done=True)]


requests = st.builds(
    Request, st.text(max_size=40).map(lambda text: text + " cat").filter(lambda text: not refused(check_prompt, text)),
    seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 100), guidance=st.floats(1, 20), size=st.sampled_from([128, 256, 384, 512]),
    repeats=st.integers(1, 20), methods=st.sampled_from(["full", "tome,few_step", "tome(ratio=0.3)+attention_reuse(maps=self)"]))


def refused(function, *arguments):
    """The sentence with which BadRequest came, or "" when it did not come."""
    try:
        function(*arguments)
    except BadRequest as told:
        assert str(told).endswith(".") and told.field
        return str(told)
    return ""


@given(requests)
@settings(max_examples=60)
def test_every_request_comes_back_from_recipe_link_and_picture(request):
    assert store.read_recipe(json.loads(json.dumps(store.recipe(request)))) == request
    assert store.from_query(dict(urllib.parse.parse_qsl(store.query(request), strict_parsing=True))) == request
    file = io.BytesIO()
    store.save_png(picture(3), file, store.recipe(request))
    assert store.read_png(io.BytesIO(file.getvalue())) == request


def test_a_picture_with_a_recipe_is_the_same_picture_and_its_text_is_ascii():
    file = io.BytesIO()
    store.save_png(picture(77), file, store.recipe(ASKED))
    with Image.open(io.BytesIO(file.getvalue())) as image:
        assert image.tobytes() == picture(77).tobytes() and image.text["fastviz"].isascii()
    assert b"tEXtfastviz\0{" in file.getvalue()  # the plain kind of chunk, which the page's script reads


GOOD = store.recipe(ASKED)
BAD_RECIPES = [None, [], 3, "x", {}, {"fastviz": 2}, GOOD | {"fastviz": 1.0}, GOOD | {"fastviz": True}, GOOD | {"seed": -1}, GOOD | {"seed": "7"},
               GOOD | {"prompt": "\0"}, GOOD | {"methods": ["tome"]}, GOOD | {"methods": "rm -rf"}, GOOD | {"model": "../../etc"},
               GOOD | {"steps": 10**9}, GOOD | {"guidance": None, "size": [256]}, GOOD | {"repeats": 1e400},
               {name: value for name, value in GOOD.items() if name != "prompt"}]


@pytest.mark.parametrize("told", BAD_RECIPES, ids=lambda told: ascii(told)[-30:])
def test_a_bad_recipe_is_refused_with_a_sentence(told):
    assert refused(store.read_recipe, told)


@given(st.dictionaries(st.sampled_from([*store.FIELDS, "fastviz", "other"]),
                       st.one_of(st.none(), st.text(max_size=9), st.integers(), st.floats(), st.lists(st.integers(), max_size=2))))
@settings(max_examples=200)
def test_any_recipe_is_read_or_refused(told):
    if not refused(store.read_recipe, told):
        assert store.recipe(store.read_recipe(told)) == {name: told[name] for name in GOOD}


@pytest.mark.parametrize("told", [{}, {"prompt": ""}, {"prompt": "cat", "seed": "x"}, {"prompt": "cat", "seed": "1_0"}, {"prompt": "cat", "seed": "９"},
                                  {"prompt": "cat", "steps": "1.5"}, {"prompt": "cat", "guidance": "nan"}, {"prompt": "cat", "methods": ["tome"]},
                                  {"prompt": ["cat"]}, {"prompt": "cat", "size": "9" * 99}, {"prompt": "cat", "model": "x"}], ids=ascii)
def test_a_bad_link_is_refused_with_a_sentence(told):
    assert refused(store.from_query, told)


def test_a_short_link_has_the_defaults_and_strangers_are_left_alone():
    assert store.from_query({"prompt": "a cat", "__theme": "dark"}) == Request("a cat")


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"<svg/>"], ids=ascii)
def test_a_file_that_is_no_picture_of_ours_is_refused(data):
    assert refused(store.read_png, io.BytesIO(data))


def test_a_png_without_or_with_a_broken_recipe_is_refused():
    for text in (None, "{", "[" * 100_000, json.dumps({"fastviz": 1})):
        file = io.BytesIO()
        chunks = store.PngImagePlugin.PngInfo()
        chunks.add_text("fastviz" if text else "Comment", text or "hello")
        picture(1).save(file, format="PNG", pnginfo=chunks)
        assert refused(store.read_png, io.BytesIO(file.getvalue()))


def test_a_folder_holds_pictures_figures_and_how_to_ask_again(tmp_path):
    folder = store.save(tmp_path / "runs" / "demo", ASKED, rows(), ENVIRONMENT)
    names = sorted(path.name for path in folder.iterdir())
    assert {"run.json", "table.csv", "figure.png", "00-full.png", "01-tome-ratio-0.4-random-false-+attention_reuse.png"} <= set(names)
    assert "01-tome-ratio-0.4-random-false-+attention_reuse-lpips.png" in names and not any(name.startswith("04") for name in names)
    told = json.loads((folder / "run.json").read_text())
    assert store.read_recipe(told["recipe"]) == ASKED and told["environment"] == ENVIRONMENT
    assert told["rows"][0]["metrics"]["psnr"] == "infinite: the pictures are equal" and told["rows"][4]["error"].startswith("Out of memory")
    assert (folder / told["rows"][2]["picture"]).is_file() and told["rows"][4]["picture"] is None
    assert store.read_png(folder / "00-full.png") == ASKED
    lines = list(csv.DictReader((folder / "table.csv").open(newline="")))
    assert [float(line["seconds"] or 0) for line in lines] == [4.0, 3.0, 2.0, 1.0, 0] and lines[1]["acted"] == "tome:6x5"
    assert lines[1]["match"] == "The prompt names nothing, that the judge knows." and lines[3]["fastest"] == "0.9"


def test_the_archive_holds_the_same_files(tmp_path, monkeypatch):
    made, figure = store.files(ASKED, rows(), ENVIRONMENT), store.figure(ASKED, rows(), ENVIRONMENT)
    monkeypatch.setattr(store, "files", lambda *_: made)
    monkeypatch.setattr(store, "figure", lambda *_: figure)
    made = made | figure
    folder = store.save(tmp_path, ASKED, rows(), ENVIRONMENT)
    with zipfile.ZipFile(io.BytesIO(store.archive(made))) as zipped:
        assert zipped.testzip() is None
        found = {name.removeprefix("fastviz/"): zipped.read(name) for name in zipped.namelist()}
    assert found == {path.name: path.read_bytes() for path in folder.iterdir()}


@given(st.text(max_size=80))
def test_a_picture_name_is_safe_whatever_the_settings_say(text):
    name = store.picture_name(Row(3, text, "", 1))
    assert name.isascii() and "/" not in name and "\\" not in name and ".." not in name.removesuffix(".png")[:2] and len(name) < 70


@pytest.mark.parametrize("dark", [False, True])
def test_figures_show_every_row_and_belong_to_no_window(dark):
    sheet, plot = views.summary(ASKED, rows(), ENVIRONMENT, dark=dark), views.scatter(rows(), dark=dark)
    for figure in (sheet, plot):
        with Image.open(io.BytesIO(views.png(figure, 60))) as image:
            assert image.getpixel((0, 0))[0] == (0x14 if dark else 0xff)
    texts = [text.get_text() for text in plot.axes[0].texts]
    assert {"Full model", "Token merging + Attention reuse", "Fewer steps: 5", "Fewer steps: DDIM 5"} <= set(texts)
    assert any("Token merging: Out of memory" in text for text in texts)
    points = {tuple(line.get_xydata()[0]) for line in plot.axes[0].lines}
    assert {(4.0, 0.0), (3.0, 0.11), (2.0, 0.2), (1.0, 0.4)} <= points
    assert sum(bool(axes.images) for axes in sheet.axes + [axes for part in sheet.subfigs for axes in part.axes]) >= 4


def test_names_in_the_scatter_do_not_cover_each_other():
    plot = views.scatter([made(i, f"few_step(steps={i + 1})", "Fewer steps", 2 + i / 100, 0.1) for i in range(4)])
    plot.canvas.draw()
    boxes = [text.get_window_extent() for text in plot.axes[0].texts]
    assert len(boxes) == 4 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_the_table_is_aligned_and_says_why_a_figure_is_missing():
    lines = views.table(rows()).splitlines()
    head, cells = lines[0], lines[2:7]
    at = head.index("speed-up") + len("speed-up")
    assert [line[:at].split()[-1] for line in cells] == ["1.00x", "1.33x", "2.00x", "4.00x", "-"]
    assert "tome: Out of memory at 128 px: choose a smaller size." in lines
    assert "No match: The prompt names nothing, that the judge knows." in lines
    assert sum("LPIPS (squeeze)" in line for line in lines) == 1
