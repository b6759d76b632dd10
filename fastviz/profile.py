"""Deployment profiles: what one installation offers and allows, read from spaces_config.yaml."""

import os
from dataclasses import dataclass, fields, replace
from ipaddress import ip_address
from pathlib import Path

import yaml

from . import sketch
from .methods import BY_KEY, METHODS, method_of
from .models import MODELS
from .request import REPEATS, ROWS, STEPS, BadRequest, Request

PATH = Path(__file__).parents[1] / "spaces_config.yaml"
ZERO = "zero-a10g"  # how the hub calls the hardware that is lent call by call
BOUNDS = {"max_steps": STEPS, "max_rows": (1, ROWS), "max_repeats": REPEATS, "max_size": (64, 2048), "queue": (1, 1000),
          "per_visitor": (0, 100), "remembered": (0, 10_000), "records_megabytes": (1, 4096), "temp_megabytes": (1, 10**6),
          "temp_minutes": (1, 10**6), "history_megabytes": (0, 10**6), "sweep_cells": (0, 5000)}
LANGUAGES = ("", *sorted(path.stem for path in (Path(__file__).parent / "lessons/words").glob("*.json")))
TEXTS, SWITCHES = ("address", "hardware"), ("metrics", "log_prompts", "history_shared")


@dataclass(frozen=True)
class Profile:
    """models: keys offered; methods: keys allowed; max_*: upper bounds of one request; queue: visitors that may wait;
    per_visitor, remembered: see spaces_config.yaml; address: where the server listens; hosts: names under which it may be
    called, "*" for any; metrics: whether /metrics is offered; log_prompts: whether the log tells them; hardware: of a Space;
    records_megabytes: of one look inside a row; temp_megabytes, temp_minutes: bounds of the temp folder; history_*,
    sweep_cells: see spaces_config.yaml; language: of the page for who has chosen none, "" for the browser's;
    example: what the page shows at first."""
    models: tuple
    methods: tuple
    max_steps: int
    max_size: int
    max_rows: int
    max_repeats: int
    queue: int
    per_visitor: int
    remembered: int
    address: str
    hosts: tuple
    metrics: bool
    log_prompts: bool
    hardware: str
    records_megabytes: int
    temp_megabytes: int
    temp_minutes: int
    history_megabytes: int
    history_shared: bool
    sweep_cells: int
    language: str
    example: dict

    def check(self, request):
        """The request again, or BadRequest where it asks for more than this installation allows."""
        for field, what, asked, most in (("steps", "steps", request.steps, self.max_steps),
                                         ("size", "pixels", request.size, self.max_size),
                                         ("repeats", "repeats", request.repeats, self.max_repeats),
                                         ("methods", "rows", len(request.methods), self.max_rows)):
            if asked > most:
                raise BadRequest(field, f"{asked} {what} are too many here: {most} at most.")
        if request.model not in self.models:
            raise BadRequest("model", f"This page offers {', '.join(self.models)} only.")
        if request.sketch and (sentence := sketch.missing(MODELS[request.model].folder)):
            raise BadRequest("sketch", sentence)
        for method in (method_of(knobs) for stack in request.methods for knobs in stack):
            if method.KEY not in self.methods:
                raise BadRequest("methods", f"This page does not offer {method.TITLE}: leave it out.")
        return request


def default():
    """The profile's name where nobody names one: by the platform that this runs on."""
    if named := os.environ.get("FASTVIZ_PROFILE"):
        return named
    return "local" if "SPACE_ID" not in os.environ else "zerogpu" if os.environ.get("SPACES_ZERO_GPU") else "cpu-basic"


def read_yaml(text, what):
    """What YAML says: {name: value}. ValueError with a sentence about `what` when it says nothing of that kind."""
    try:
        told = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{what} cannot be read as YAML, mend it: {' '.join(str(error).split())}.") from error
    if not isinstance(told, dict):
        raise ValueError(f"{what} must be a list of names and values.")
    return told


def load(name="local", path=PATH):
    """The profile called `name`. ValueError names what is wrong with the file and what is right."""
    profiles = read_yaml(Path(path).read_text(), path)
    if name not in profiles:
        raise ValueError(f"{path} has no profile {name!r}: choose from {', '.join(map(str, profiles))}.")
    told, names = profiles[name], [field.name for field in fields(Profile)]
    if not isinstance(told, dict):
        raise ValueError(f"Profile {name} must be a list of names and values.")
    for wrong, what in ((set(names) - set(told), "lacks"), (set(told) - set(names), "has the unknown")):
        if wrong:
            raise ValueError(f"Profile {name} {what} {', '.join(sorted(wrong))}.")
    for field, (low, high) in BOUNDS.items():
        if type(told[field]) is not int or not low <= told[field] <= high:
            raise ValueError(f"Profile {name}: {field} must be a whole number from {low} to {high}.")
    for field in TEXTS:
        if not isinstance(told[field], str):
            raise ValueError(f"Profile {name}: {field} must be text.")
    if told["language"] not in LANGUAGES:
        raise ValueError(f"Profile {name}: language must be one of {', '.join(LANGUAGES[1:])}, or \"\" for the browser's.")
    for field in SWITCHES:
        if type(told[field]) is not bool:
            raise ValueError(f"Profile {name}: {field} must be true or false.")
    if not isinstance(told["hosts"], list) or not told["hosts"] or not all(isinstance(host, str) for host in told["hosts"]):
        raise ValueError(f"Profile {name}: hosts must be a list of names, or of \"*\" for any.")
    every = [method.KEY for method in METHODS]
    methods = every if told["methods"] == "all" else told["methods"]
    for field, chosen, known in (("models", told["models"], MODELS), ("methods", methods, BY_KEY)):
        if not isinstance(chosen, list) or not chosen or not all(isinstance(key, str) and key in known for key in chosen):
            raise ValueError(f"Profile {name}: {field} must be a list of {', '.join(known)}.")
    methods = [key for key in every if key == "full" or key in methods]
    profile = Profile(**{**told, "models": tuple(told["models"]), "methods": tuple(methods), "hosts": tuple(told["hosts"])})
    try:
        profile.check(Request(**profile.example))
    except (BadRequest, TypeError) as error:
        raise ValueError(f"Profile {name}: its example cannot run here: {error}") from error
    return profile


def near(address):
    """Whether only this machine can reach `address`. ValueError when it is none."""
    try:
        return address == "localhost" or ip_address(address).is_loopback
    except ValueError:
        raise ValueError(f"{address} is no address to listen on: use 127.0.0.1 for this machine or 0.0.0.0 for all.") from None


def moved(profile, address):
    """The profile for a server at another address. On this machine it is called by that name too; others know it by names that
    it cannot know, type a password, and see nobody else's history."""
    if near(address):
        return replace(profile, address=address, hosts=(*profile.hosts, address))
    return replace(profile, address=address, hosts=("*",), history_shared=False)


def may_listen(address):
    """ValueError unless everybody who reaches `address` is meant to: this machine, a password, or a Space's own gate."""
    if not near(address) and not os.environ.get("FASTVIZ_PASSWORD") and "SPACE_ID" not in os.environ:
        raise ValueError(f"Everybody on the network could use this page at {address}: set FASTVIZ_PASSWORD to what they shall "
                         "type, or listen on 127.0.0.1.")
