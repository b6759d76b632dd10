"""Deployment profiles: what one installation offers and allows, read from spaces_config.yaml."""

from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from .models import MODELS
from .request import REPEATS, ROWS, STEPS, BadRequest

PATH = Path(__file__).parents[1] / "spaces_config.yaml"


@dataclass(frozen=True)
class Profile:
    """models: keys offered; max_*: upper bounds of one request; queue: visitors that may wait; address: where the server
    listens; temp_megabytes, temp_minutes: bounds of the temp folder; history_megabytes: what kept runs may take, 0 keeps
    none; history_shared: whether everybody sees everybody's; sweep_cells: pictures of one sweep, 0 offers none; example:
    what the page shows at first."""
    models: tuple
    max_steps: int
    max_rows: int
    max_repeats: int
    queue: int
    address: str
    temp_megabytes: int
    temp_minutes: int
    history_megabytes: int
    history_shared: bool
    sweep_cells: int
    example: dict

    def check(self, request):
        """The request again, or BadRequest where it asks for more than this installation allows."""
        for field, what, asked, most in (("steps", "steps", request.steps, self.max_steps),
                                         ("repeats", "repeats", request.repeats, self.max_repeats),
                                         ("methods", "rows", len(request.methods), self.max_rows)):
            if asked > most:
                raise BadRequest(field, f"{asked} {what} are too many here: {most} at most.")
        if request.model not in self.models:
            raise BadRequest("model", f"This page offers {', '.join(self.models)} only.")
        return request


def load(name="local", path=PATH):
    """The profile called `name`. ValueError names what is wrong with the file."""
    told = yaml.safe_load(Path(path).read_text())
    if name not in told:
        raise ValueError(f"{path} has no profile {name!r}: choose from {', '.join(told)}.")
    names = [field.name for field in fields(Profile)]
    if set(told[name]) != set(names):
        raise ValueError(f"Profile {name} must have exactly {', '.join(names)}.")
    profile = Profile(**{**told[name], "models": tuple(told[name]["models"])})
    bounds = (profile.max_steps <= STEPS[1], profile.max_rows <= ROWS, profile.max_repeats <= REPEATS[1],
              set(profile.models) <= set(MODELS), profile.queue >= 1)
    if not all(bounds):
        raise ValueError(f"Profile {name} goes beyond the bounds of fastviz.request or names an unknown model.")
    return profile
