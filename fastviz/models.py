"""The table of models and the only code that loads weights."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """One model that a request may name. size, sizes: px; steps, guidance: its defaults; source: folder or hub id."""
    key: str
    title: str
    source: str
    size: int
    sizes: tuple
    steps: int
    guidance: float
    licence: str


MODELS = {model.key: model for model in (
    Model("stickers", "Stickers (embedded)", "assets/stickers/model", 256, (128, 256, 384, 512), 50, 3.0, "Apache-2.0"),
)}
