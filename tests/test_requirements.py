"""The lock file beside the loose requirements: complete, within the floors, and naming no host."""

import re

import lock
import pytest
from packaging.utils import canonicalize_name
from packaging.version import Version

from fastviz.doctor import FLOORS

LINES = [line for line in (lock.ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
PINNED = dict(line.split("==") for line in LINES)


def test_every_line_is_a_plain_pin():
    assert list(PINNED) == sorted(PINNED) and len(PINNED) == len(LINES)
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in LINES)


@pytest.mark.parametrize("requirement", list(lock.asked("requirements-test.txt")), ids=str)
def test_every_requirement_is_pinned_within_its_bounds(requirement):
    assert requirement.specifier.contains(PINNED[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("name", FLOORS)
def test_the_floors_for_safety_hold_in_both_files(name):
    floor = Version(FLOORS[name][0])
    assert Version(PINNED[name]) >= floor
    loose = next(each for each in lock.asked("requirements.txt") if each.name == name)
    assert Version(next(iter(loose.specifier)).version) >= floor and not loose.specifier.contains("0.0.1")


def test_what_is_needed_is_found_through_others():
    found = lock.closure(lock.asked("requirements.txt"))
    assert {"numpy", "starlette", "huggingface-hub", "prometheus-client"} <= set(found) and "pytest" not in found
    assert set(found) <= set(lock.closure(lock.asked("requirements-test.txt")))
