"""Whether the tests notice: breaks one line at a time in a copy of the tree and runs the tests that guard it.

The chosen ones each name the test that must fail. More are drawn from the syntax trees with a fixed seed: a comparison,
an operator, a truth value or a number becomes another one, and the tests of that file must fail.
What is drawn depends on the tree. `make mutations` runs it; it prints a line per mutation and one of JSON last, and is no part of `make test`.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).parents[1]
LIMIT = 400  # seconds for the tests of one mutation; longer counts as noticed, because it hangs
CHOSEN = (  # file, what is there, what it becomes, the test that fails
    ("patch.py", "                entries[name] = value", "                pass", "test_patch.py::test_an_entry_comes_back_as_the_same_object_and_an_absent_one_is_absent_again"),
    ("run.py", "    while not LOCK.acquire(timeout=0.2):", "    while not LOCK.acquire(timeout=0.2) and LOCK.locked() and False:", "test_run.py::test_one_run_at_a_time_and_a_waiting_one_can_be_stopped"),
    ("run.py", "manual_seed(request.seed)", "manual_seed(0)", "test_run.py::test_the_noise_is_the_cpu_generators"),
    ("verified.py", "        if told[name] != found[name]:", "        if False:", "test_models.py::test_one_flipped_byte_in_any_file_is_caught"),
    ("verified.py", "        if Path(name).suffix not in SAFE:", "        if False:", "test_models.py::test_a_planted_pickle_is_refused_before_anything_is_loaded"),
    ("methods/tome.py", 'f"{seed}/{step}/{name}"', 'f"{step}/{name}"', "test_tome.py::test_the_draw_belongs_to_seed_step_and_block"),
    ("metrics.py", "/ 127.5 - 1", "/ 255", "test_metrics.py::test_stickers_lpips_equals_numpy"),
    ("metrics.py", "    if not verified.sha256(path).startswith(told := path.stem.rpartition(\"-\")[2]):", "    if False:", "test_metrics.py::test_a_damaged_backbone_is_never_used"),
    ("ui/temp.py", "        while True:\n            try:\n                sweep", "        if True:\n            try:\n                sweep", "test_page.py::test_the_janitor_sweeps_again_and_again"),
    ("ui/gate.py", '        if origin is not None and', '        if False and', "test_health.py::test_only_its_own_page_may_call"),
    ("request.py", '"Seed", self.seed, 0, 2**32 - 1', '"Seed", self.seed, 0, 2**32', "test_request.py::test_the_bounds_themselves_pass_and_their_neighbours_do_not"),
    ("supervise.py", "            pass\n        os._exit(0)", "            pass", "test_supervise.py::test_however_it_ends_nothing_stays_behind"),
)
SAME = {  # what a mutation became -> why no test can notice: where one survives that is not here, the run fails
    "Path(parent, HASHES).write_text(json.dumps(table, indent=2) + '\\n')": "only the look of a file that programs read",
    "order = importance.argsort(stable=False, dim=-1, descending=True)": "torch sorts stably on a CPU either way; on a GPU ties would change places",
    "key = (configuration(pipe), device, request.size, guided(pipe, request), request.sketch is None, changes, steps)": "tells the same two cases apart",
    "self.order.copy_(torch.from_numpy(self.draw(step)), non_blocking=self.context.device != 'cuda')": "decides when, not what, is copied",
    "still = (s - before).abs().sum(-1).max() <= tolerance": "decides on a change of exactly the tolerance; at 0 one more round would change nothing",
    "def fetch_backbone(net, on_progress=lambda done, total: None, timeout=11):": "how long to wait for a network that does not answer",
    "def __init__(self, job, megabytes=129):": "a default size instead of another",
}
DRAWN = {  # file -> the tests that guard it
    "patch.py": "test_patch.py", "run.py": "test_run.py", "models.py": "test_models.py", "verified.py": "test_models.py", "reading.py": "test_models.py", "request.py": "test_request.py",
    "metrics.py": "test_metrics.py", "compare.py": "test_compare.py", "store.py": "test_store.py", "trace.py": "test_lens.py test_inside.py test_contract.py",
    "cost.py": "test_cost.py", "schedulers.py": "test_olss.py", "gwpr.py": "test_atedm.py", "lens.py": "test_lens.py", "doctor.py": "test_doctor.py",
    "profile.py": "test_page.py", "log.py": "test_health.py", "supervise.py": "test_supervise.py",
    "methods/tome.py": "test_tome.py", "methods/atedm.py": "test_atedm.py", "methods/attention_reuse.py": "test_attention_reuse.py",
    "methods/few_step.py": "test_few_step.py", "methods/olss.py": "test_olss.py",
    "ui/health.py": "test_health.py", "ui/gate.py": "test_health.py", "ui/temp.py": "test_page.py", "ui/ask.py": "test_page.py",
    "ui/board.py": "test_page.py", "ui/job.py": "test_health.py test_inside.py test_page.py", "ui/inside.py": "test_inside.py",
}
OTHER = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn,
         ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
         ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.And: ast.Or, ast.Or: ast.And}


def sites(tree):
    """Nodes that can become something else, in order; declarations of knobs and constants at the top are left out, because
    a default of a paper is no logic."""
    found = []
    for top in tree.body:
        for part in top.body if isinstance(top, ast.ClassDef) else [top]:
            for node in ast.walk(part) if isinstance(part, ast.FunctionDef) else ():
                operator = node.ops[0] if isinstance(node, ast.Compare) else getattr(node, "op", None)
                plain = isinstance(node, ast.Constant) and type(node.value) in (int, float, bool)
                if type(operator) in OTHER or isinstance(operator, ast.Not) or plain:
                    found.append(node)
    return found


def change(node):
    """Makes `node` something else."""
    if isinstance(node, ast.Compare):
        node.ops[0] = OTHER[type(node.ops[0])]()
    elif isinstance(node, ast.Constant):
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1
    elif isinstance(node.op, ast.Not):
        node.op, node.operand = ast.Not(), ast.UnaryOp(ast.Not(), node.operand)
    else:
        node.op = OTHER[type(node.op)]()


def drawn(count, seed):
    """[(file, its text with one change, the line before and after, tests)], each from another place."""
    places = [(name, i) for name in DRAWN for i in range(len(sites(ast.parse((ROOT / "fastviz" / name).read_text()))))]
    for name, i in random.Random(seed).sample(places, count):
        tree = ast.parse((ROOT / "fastviz" / name).read_text())
        before = ast.unparse(tree).splitlines()
        change(sites(tree)[i])
        text = ast.unparse(tree)
        lines = next((pair for pair in zip(before, text.splitlines()) if pair[0] != pair[1]), ("", ""))
        yield name, text + "\n", [line.strip() for line in lines], DRAWN[name].split()


def chosen():
    for name, old, new, test in CHOSEN:
        whole = (ROOT / "fastviz" / name).read_text()
        assert whole.count(old) == 1, (name, old)
        yield name, whole.replace(old, new), [old.strip(), new.strip()], [test]


def copy(folder):
    """The tracked files in a folder of their own."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, Path(folder, name))


def passes(folder, tests):
    """Whether the tests pass in a copy -> (True, False, or None when they hang; the name of the first that fails)."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    except subprocess.TimeoutExpired:
        return None, "hangs"
    failed = next((line.split()[1] for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR")) and " tests/" in line), "")
    return done.returncode == 0, failed


def tried(copies, kind, name, text, lines, tests):
    """What became of one mutation, in whichever copy is free."""
    folder = copies.get()
    path = folder / "fastviz" / name
    whole = path.read_text()
    path.write_text(text)
    passed, by = passes(folder, tests)
    path.write_text(whole)
    copies.put(folder)
    told = {"kind": kind, "file": name, "before": lines[0], "after": lines[1], "noticed": passed is not True, "by": by}
    return told if told["noticed"] else told | {"why": SAME.get(lines[1], "")}


def main():
    told = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    told.add_argument("--drawn", type=int, default=30, help="how many are drawn besides the chosen ones")
    told.add_argument("--seed", type=int, default=0)
    told.add_argument("--out", type=Path)
    asked, found = told.parse_args(), []
    mutations = [(kind, *each) for kind, all_of in (("chosen", chosen()), ("drawn", drawn(asked.drawn, asked.seed))) for each in all_of]
    with tempfile.TemporaryDirectory() as top, ThreadPoolExecutor(2) as pool:
        copies = Queue()
        for name in ("one", "two"):
            copy(Path(top, name))
            copies.put(Path(top, name))
        for each in pool.map(lambda mutation: tried(copies, *mutation), mutations):
            found.append(each)
            print(f"{'noticed' if each['noticed'] else 'survived':8}  {each['kind']}  {each['file']}: {each['before']}  ->  {each['after']}", flush=True)
            report = {"command": f"python tests/mutations.py --drawn {asked.drawn} --seed {asked.seed}", "mutations": found}
            if asked.out:
                asked.out.write_text(json.dumps(report, indent=1) + "\n")
    survived = [each for each in found if not each["noticed"]]
    unexplained = sum(not each["why"] for each in survived)
    print(json.dumps({"mutations": len(found), "noticed": len(found) - len(survived), "survived": len(survived), "unexplained": unexplained}))
    return bool(unexplained)


if __name__ == "__main__":
    sys.exit(main())
