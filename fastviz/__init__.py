"""fastviz shows how diffusion models are made fast: one prompt, the full model and its accelerated variants, side by side.

    from fastviz import Request, compare

    for row in compare(Request("a cat and a pizza on the beach", methods="full,tome")):
        print(row.title, row.seconds, row.metrics["lpips"])

`compare` is the module fastviz.compare, which can be called as its function of that name.
"""

import importlib

_HOME = {"Request": "request", "BadRequest": "request", "METHODS": "methods"}
__all__ = ["BadRequest", "METHODS", "Request", "compare"]


def __getattr__(name):
    """Imports on first use: torch takes seconds, and a page that is only being served needs none of it."""
    if name == "compare":
        return importlib.import_module(".compare", __name__)
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
