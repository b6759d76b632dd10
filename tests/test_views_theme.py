"""Figures whose words are of any script."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from fastviz.views import theme


@pytest.mark.parametrize("here, family", ((("Foo",), []), (("Foo", "SimHei", "Noto Sans SC"), ["Noto Sans SC"])))
def test_figures_take_a_font_for_chinese_and_japanese_where_there_is_one(here, family, monkeypatch):
    monkeypatch.setattr(theme.font_manager.fontManager, "ttflist", [SimpleNamespace(name=name) for name in here])
    assert theme.fonts.__wrapped__() == ["DejaVu Sans", *family]


def test_a_letter_that_no_font_has_is_not_spelled_in_the_log():
    code = "from fastviz.views import theme as t\nf = t.blank(2, 1, t.LIGHT)\nf.suptitle('\\U0010fffd', fontfamily=t.fonts())\nprint(len(t.png(f)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert int(told.stdout) > 100 and "Glyph" not in told.stderr
