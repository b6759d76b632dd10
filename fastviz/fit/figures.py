"""Pictures of a fitted schedule, from its file of coefficients alone."""

import json

from .. import views
from ..methods import olss


def write(path, folder):
    """The figures of the coefficients at `path` as PNG files in `folder`."""
    for kind, figure in views.scheme(olss.explained(json.loads(path.read_text()))).items():
        (folder / f"{path.stem}-{kind}.png").write_bytes(views.png(figure))
