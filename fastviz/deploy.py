"""This project as a Space: what would be uploaded, and the upload itself, by huggingface_hub."""

import os
import re
from dataclasses import dataclass

from .models import ROOT
from .profile import ZERO, read_yaml
from .verified import BadModel

FILES = ("app.py", "README.md", "LICENSE", "THIRD_PARTY.md", "requirements.txt", "spaces_config.yaml")
FOLDERS = ("fastviz", "assets")
ONWARD = "assets/stickers/onward"  # begins the folders that training goes on from, and nothing else reads
PYTHON, SHORT = (3, 11), 60  # the oldest that this runs with; characters of a Space's short description
LARGEST = 10_000_000  # bytes of a file that needs no large-file storage


@dataclass(frozen=True)
class Plan:
    """files: {path in the Space: bytes of it or Path}; sizes: {path: bytes}; front: README's front matter; profile: the
    name that the Space is told."""
    files: dict
    sizes: dict
    front: dict
    profile: str


def front_matter(readme):
    """README's front matter as a dict. ValueError without one, or when it cannot be read."""
    found = re.match(r"---\n(.*?)\n---\n", readme, re.DOTALL)
    if not found:
        raise ValueError("README.md must begin with the front matter of a Space, between two lines of ---.")
    return read_yaml(found[1], "README.md's front matter")


def names(root=ROOT):
    """Paths of what the Space holds, in order: no tests, nothing hidden, nothing that only training reads."""
    found = [root / name for name in FILES]
    found += [path for folder in FOLDERS for path in sorted((root / folder).rglob("*")) if path.is_file()]
    told = [path.relative_to(root).as_posix() for path in found]
    return [name for name in told if not any(part.startswith(".") for part in name.split("/"))
            and "__pycache__" not in name and not name.endswith(".state.json") and not name.startswith(ONWARD)]


def check(front, needs, root=ROOT):
    """ValueError with a sentence where the front matter is none that the hub takes, or disagrees with requirements.txt."""
    if front.get("sdk") != "gradio" or not (root / str(front.get("app_file"))).is_file():
        raise ValueError("README.md's front matter must say sdk: gradio, and name the app_file.")
    if not front.get("suggested_hardware"):
        raise ValueError("README.md's front matter must name its suggested_hardware, such as cpu-basic.")
    if "gradio" not in needs or str(front.get("sdk_version")) not in needs["gradio"]:
        raise ValueError(f"README.md's front matter asks for gradio {front.get('sdk_version')} and requirements.txt for "
                         f"{needs.get('gradio') or 'none'}: make them agree.")
    asked = str(front.get("python_version", ""))
    if asked and (not re.fullmatch(r"\d+\.\d+(\.\d+)?", asked) or tuple(map(int, asked.split("."))) < PYTHON):
        raise ValueError(f"README.md's front matter asks for Python {asked}: {'.'.join(map(str, PYTHON))} at least.")
    if len(str(front.get("short_description", ""))) > SHORT:
        raise ValueError(f"README.md's short_description has more than {SHORT} characters.")


def requirements(text):
    """{package: its versions} of requirements.txt. ValueError where a line is no requirement."""
    from packaging.requirements import InvalidRequirement, Requirement

    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    try:
        return {told.name: told.specifier for told in map(Requirement, filter(None, lines))}
    except InvalidRequirement as error:
        raise ValueError(f"requirements.txt holds what is no requirement: {str(error).splitlines()[0]}.") from error


def plan(profile, name, root=ROOT):
    """What a Space with this profile is made of. ValueError with a sentence for a profile that is no Space's, or for front
    matter, requirements or files that the hub would not take."""
    if not profile.hardware:
        raise ValueError(f"The profile {name} names no hardware of a Space: choose cpu-basic or zerogpu.")
    readme = (root / "README.md").read_text()
    front = front_matter(readme)
    if (told := front.get("suggested_hardware")) != profile.hardware:
        readme = readme.replace(f"suggested_hardware: {told}", f"suggested_hardware: {profile.hardware}", 1)
        front = front_matter(readme)
    files = {path: root / path for path in names(root)} | {"README.md": readme.encode()}
    if profile.hardware == ZERO:
        files["requirements.txt"] = ((root / "requirements.txt").read_text() + "spaces>=0.40\n").encode()
    needs = files["requirements.txt"]
    check(front, requirements((needs if isinstance(needs, bytes) else needs.read_bytes()).decode()), root)
    sizes = {path: len(data) if isinstance(data, bytes) else data.stat().st_size for path, data in files.items()}
    if large := [path for path, size in sizes.items() if size >= LARGEST]:
        raise ValueError(f"{', '.join(large)}: a Space's plain files are below {LARGEST // 10**6} MB. Make them smaller.")
    return Plan(files, sizes, front, name)


def text(space, plan):
    """The plan for people: one line per folder, front matter, requirements."""
    folders = {}
    for path, size in plan.sizes.items():
        folder = "/".join(path.split("/")[:2]) + "/" if path.count("/") > 1 else path
        count, total = folders.get(folder, (0, 0))
        folders[folder] = count + 1, total + size
    width = max(map(len, folders))
    lines = [f"{folder:<{width}}  {count:>4} {'file ' if count == 1 else 'files'}  {total / 1e3:>9.1f} kB"
             for folder, (count, total) in folders.items()]
    needs = plan.files["requirements.txt"]
    needs = (needs if isinstance(needs, bytes) else needs.read_bytes()).decode().split()
    return "\n".join([f"Space {space}, profile {plan.profile}", "", *lines, "",
                      f"{len(plan.sizes)} files, {sum(plan.sizes.values()) / 1e6:.2f} MB", "", "Front matter of README.md:",
                      *(f"  {key}: {value}" for key, value in plan.front.items()), "",
                      "Requirements: " + ", ".join(needs)])


def upload(space, plan):
    """Makes the Space if there is none, uploads everything in one commit and tells it its profile -> what to say. BadModel
    with a sentence when the hub refuses."""
    from huggingface_hub import CommitOperationAdd, HfApi, errors

    api = HfApi()
    operations = [CommitOperationAdd(path, data if isinstance(data, bytes) else os.fspath(data)) for path, data in plan.files.items()]
    try:
        space = api.create_repo(space, repo_type="space", space_sdk="gradio", exist_ok=True).repo_id
        api.add_space_variable(space, "FASTVIZ_PROFILE", plan.profile)
        api.create_commit(space, operations, repo_type="space", commit_message="Upload fastviz")
    except errors.LocalTokenNotFoundError as error:
        raise BadModel("Nobody is logged in: run `hf auth login` first.") from error
    except (OSError, errors.HTTPError) as error:
        words = str(error).strip().splitlines()
        raise BadModel(f"The hub did not take it ({words[0] if words else type(error).__name__}): run `hf auth login` with a "
                       "token that may write, and the same command again.") from error
    return f"Uploaded: https://huggingface.co/spaces/{space}. Its hardware is chosen there: {plan.front['suggested_hardware']}."
