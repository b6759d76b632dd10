"""What the lessons say, one JSON file per language: {"name": of the language, "ui": texts of the tab, "lessons": {key: texts},
"page": {English text of the page: the same in this language}}. A text takes figures in braces, such as {few.seconds}."""

import functools
import json
from pathlib import Path

LANGUAGES = ("en", "zh", "de", "es")


@functools.cache
def read(language):
    """All texts of one of LANGUAGES."""
    return json.loads((Path(__file__).parent / f"{language}.json").read_text(encoding="utf-8"))
