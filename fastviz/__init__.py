"""fastviz shows how diffusion models are made fast: one prompt, the full model and its accelerated variants, side by side.

    from fastviz import Request, compare

    for row in compare(Request("a cat and a pizza on the beach", methods="full,tome")):
        print(row.title, row.seconds, row.metrics["lpips"])

`compare` is the module fastviz.compare, which can be called as its function of that name.
"""

import importlib
import importlib.util
import sys

if not importlib.util.find_spec("torch"):  # most likely another Python than the one that `make app` installed everything for
    raise ModuleNotFoundError(f"fastviz needs torch, and {sys.executable} has none: `make app` installs everything into .venv, and "
                              "`. .venv/bin/activate` turns to that Python.", name="torch")

_HOME = {"Request": "request", "BadRequest": "request", "METHODS": "methods"}
__all__ = ["BadRequest", "METHODS", "Request", "compare"]


def __getattr__(name):
    """Imports on first use: torch takes seconds, and a page that is only being served needs none of it."""
    if name == "compare":
        return importlib.import_module(".compare", __name__)
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
