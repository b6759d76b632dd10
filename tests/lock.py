"""Prints what is installed of the requirements and of all that they need, pinned: `make lock` writes requirements.lock."""

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def asked(file):
    """The Requirements in a file, and in the files that it names."""
    for line in (ROOT / file).read_text().splitlines():
        if line.startswith("-r "):
            yield from asked(line[3:].strip())
        elif line.strip() and not line.startswith("#"):
            yield Requirement(line)


def closure(requirements):
    """{canonical name: installed version} of the requirements and what they need here."""
    found, left, seen = {}, list(requirements), set()
    while left:
        requirement = left.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            package = distribution(name)
        except PackageNotFoundError:  # what only another system or an extra needs
            continue
        found[name] = package.version
        for text in package.requires or []:
            needed = Requirement(text)
            if not needed.marker or any(needed.marker.evaluate({"extra": extra}) for extra in extras or {""}):
                left.append(needed)
    return found


if __name__ == "__main__":
    print(f"# What `make test` passed with, on Python {sys.version_info.major}.{sys.version_info.minor} and {sys.platform}: written by `make lock`.")
    print("\n".join(f"{name}=={version}" for name, version in sorted(closure(asked("requirements-test.txt")).items())))
