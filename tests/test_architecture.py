"""The rules that keep the project easy to change, read from its own source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from fastviz.methods import METHODS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastviz"
FILES = sorted(PACKAGE.rglob("*.py"))
APART = ("stickers", "bench", "search", "fit")  # how the model is made, benchmarks, searches and fits: not part of the app

# What each part may import, besides its own folder. A method is known from outside only by its module's contract.
BASE = {"knobs", "patch", "ranges", "trace", "fitted"}
MODELS = BASE | {"methods", "models", "request", "verified"}
ARROWS = {
    "knobs": set(), "patch": set(), "ranges": {"patch"}, "trace": set(), "fitted": {"checkpoints"}, "judge": set(), "checkpoints": set(), "verified": set(),
    "models": {"judge", "checkpoints", "verified"}, "reading": {"models", "verified"}, "hub": {"fitted", "models", "sketch", "verified"},
    "deploy": {"models", "profile", "verified"},
    "kernels": set(), "gwpr": {"kernels"}, "schedulers": set(),
    "methods": BASE | {"bare", "gwpr", "kernels", "models", "schedulers", "verified"}, "bare": {"models", "patch"},
    "request": BASE | {"given", "methods", "models"},
    "profile": {"methods", "models", "request", "sketch"}, "log": set(), "supervise": {"log"},
    "lens": BASE | {"methods"}, "given": set(), "begin": {"given", "patch"}, "sketch": BASE | {"bare", "given", "models", "verified"},
    "run": MODELS | {"begin", "lens", "sketch"}, "cost": MODELS | {"bare", "run", "sketch"}, "metrics": {"judge", "models", "verified"},
    "stages": {"cost", "models"}, "glimpse": {"schedulers"}, "compare": MODELS | {"glimpse", "run", "cost", "metrics"},
    "store": MODELS | {"given", "run", "compare", "views"},
    "explore": MODELS | {"run", "cost", "metrics", "compare", "store", "views"},
    "lessons": MODELS | {"compare", "run", "store", "views"},
    "views": {"trace"},
    "doctor": MODELS | {"judge", "metrics", "run", "compare"},
    "ui": MODELS | {"given", "sketch", "compare", "cost", "explore", "lessons", "profile", "reading", "run", "stages", "store", "views"},
    "": MODELS | {"compare", "metrics", "run"},
}


def part_of(path):
    """`tome.py` in methods -> "methods"; fastviz/run.py -> "run"; fastviz/__init__.py -> ""."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports(tree, package):
    """(line, whole name, at module level) of every import; `package` is that of the file, such as "fastviz.ui"."""
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[:len(package.split(".")) + 1 - node.level] if node.level else []
            whole = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                yield node.lineno, f"{whole}.{alias.name}", id(node) in top


def wrong_imports(path, source):
    """Imports that go against the arrows: [(line, name)]."""
    part, package = part_of(path), ".".join(path.relative_to(ROOT).parent.parts)
    found = []
    for line, name, at_top in imports(ast.parse(source), package):
        outer, *inner = name.split(".")
        if outer != "fastviz" or not inner or part in APART or inner[0] == part:
            continue
        if part == "__main__":
            fine = inner[0] not in APART or (inner[0] in ("bench", "search", "fit") and not at_top)
        else:
            fine = inner[0] in ARROWS[part]
        if not fine:
            found.append((line, name))
    return found


def calls(tree, names):
    """Lines that use something called one of `names`, as an attribute or by itself."""
    return [node.lineno for node in ast.walk(tree) if {getattr(node, "attr", None), getattr(node, "id", None)} & names]


def trees(leave_out=()):
    return [(path, ast.parse(path.read_text())) for path in FILES if part_of(path) not in leave_out]


def test_imports_follow_the_arrows():
    wrong = {str(path.relative_to(ROOT)): found for path in FILES if (found := wrong_imports(path, path.read_text()))}
    assert wrong == {}


@pytest.mark.parametrize("file, source", (
    ("methods/tome.py", "from ..run import generate"),
    ("methods/tome.py", "def attach():\n    from ..request import BadRequest"),
    ("run.py", "from .compare import Row"),
    ("ui/page.py", "import fastviz.stickers.world"),
    ("compare.py", "from . import bench"),
    ("views/table.py", "from fastviz import request"),
    ("__main__.py", "from .bench import local"),
    ("__main__.py", "from .search import reuse"),
    ("ui/page.py", "from ..search import schedules"),
    ("__main__.py", "from .fit import olss"),
    ("__main__.py", "def bench():\n    from .stickers import world"),
    ("methods/olss.py", "from ..fit import calibrate"),
    ("ui/page.py", "def run():\n    from ..fit import olss"),
    ("schedulers.py", "from .methods import olss"),
))
def test_a_wrong_import_is_found(file, source):
    assert len(wrong_imports(PACKAGE / file, source)) == 1


@pytest.mark.parametrize("file, source", (
    ("methods/tome.py", "import torch\nfrom ..patch import replaced\nfrom . import full"),
    ("__main__.py", "def bench():\n    from .bench import local"),
    ("__main__.py", "def search():\n    from .search import reuse"),
    ("__main__.py", "def fit():\n    from .fit import olss"),
    ("methods/olss.py", "def load():\n    from ..schedulers import OLSSScheduler"),
    ("stickers/teacher.py", "from ..compare import compare"),
))
def test_a_right_import_is_not(file, source):
    assert wrong_imports(PACKAGE / file, source) == []


def test_app_py_leaves_what_is_apart_alone():
    names = [name for _, name, _ in imports(ast.parse((ROOT / "app.py").read_text()), "")]
    assert not [name for name in names if name.startswith(tuple(f"fastviz.{part}" for part in APART))]


def test_only_models_loads_weights():
    found = {path.name for path, tree in trees(leave_out=APART) if calls(tree, {"from_pretrained"})}
    assert found == {"models.py"}


def test_only_run_has_a_clock():
    """What is published as a time is measured in one place. Ages of files (time.time) are not such times."""
    clocks = {"perf_counter", "perf_counter_ns", "process_time", "process_time_ns", "monotonic", "monotonic_ns",
              "thread_time", "elapsed_time", "default_timer", "timeit"}
    assert {path.name for path, tree in trees(leave_out=APART) if calls(tree, clocks)} == {"run.py"}


def test_only_patch_writes_past_an_object():
    """Hosts are edited by replaced() alone: nobody else touches __dict__ or sets processors."""
    names = {"__dict__", "setattr", "set_attn_processor", "set_processor"}
    assert {path.name for path, tree in trees(leave_out=APART) if calls(tree, names)} == {"patch.py"}


def test_methods_are_the_files_of_their_folder():
    files = {path.stem for path in (PACKAGE / "methods").glob("*.py")} - {"__init__"}
    assert files == {method.__name__.rpartition(".")[2] for method in METHODS} == {method.KEY for method in METHODS}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.KEY)
def test_a_method_has_its_parts_in_order(method):
    tree = ast.parse(Path(method.__file__).read_text())
    assert method.TITLE and method.SAYS.endswith(".") and method.ROLE in ("patch", "scheduler", "weights")
    assert method.PAPER is None or method.PAPER[1].startswith("https://")
    names = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert names[0] == "Knobs" and names[-1] == "attach"
    important = [f for f in method.Knobs.__dataclass_fields__.values() if not f.metadata.get("tinker")]
    assert len(important) <= 5
    assert all(f.metadata["says"].endswith(".") for f in method.Knobs.__dataclass_fields__.values())


def test_every_file_says_what_it_is():
    assert [str(path.relative_to(ROOT)) for path, tree in trees() if not ast.get_docstring(tree)] == []


def test_controls_can_be_built_without_waiting_for_torch():
    code = "import sys, fastviz.request; print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_every_name_is_defined_somewhere():
    """A function moved to another file leaves nobody behind who still calls it: most such lines run only sometimes."""
    paths = [*FILES, *sorted((ROOT / "tests").glob("*.py")), ROOT / "app.py"]
    told = subprocess.run([sys.executable, "-m", "pyflakes", *map(str, paths)], capture_output=True, text=True).stdout
    assert [line for line in told.splitlines() if ": undefined name" in line] == []
