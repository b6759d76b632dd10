"""Renews everything that is made from the embedded model's weights, in order, after they were trained further."""

import subprocess
import sys

STEPS = {  # name -> commands, each resumable; the longest come late, and last what needs an idle machine, requirements-test.txt and Chromium
    "export": [["fastviz.stickers", "export"]],
    "evaluate": [["fastviz.stickers", "evaluate", "--count", "256"]],
    "olss": [["fastviz", "fit", "olss", "--steps", "4,5,6,8,10,20", "--search", "olss,olss-p,ays", "--guidance", "3", "--prompts",
              "16", "--held-out", "36", "--refit"]],
    "sketch": [["fastviz.stickers", "sketch", "--minutes", "30"], ["fastviz.stickers", "export-sketch"],
               ["fastviz.stickers", "evaluate-sketch", "--count", "48", "--steps", "25"]],
    "lessons": [["fastviz.lessons"]],
    "claims": [["fastviz", "bench", "claims", "--count", "32", "--out", "assets/bench/claims.json"],
               ["fastviz", "bench", "rank", "--out", "assets/bench/rank.json"]],
    "diagnose": [["fastviz.stickers", "diagnose", "--count", "256"]],
    "behaviour": [["fastviz.stickers", "behaviour"]],
    "reuse": [["fastviz", "search", "reuse", "--steps", str(steps), "--reuse", str(round(share * steps)), "--held-out", "64"]
              for steps in (20, 50) for share in (0.25, 0.5, 0.75)] + [
                  ["fastviz", "search", "report", "--figure", "assets/bench/reuse.png", "--out", "assets/bench/reuse.json"],
                  ["fastviz", "search", "one-reuse", "--out", "assets/bench/one-reuse.json"]],
    "local": [["fastviz", "bench", "local", "--out", "assets/bench/local.json"]] * 2 + [["fastviz", "bench", "photo", "--out", "assets/page.webp"]],
}


def rebuild(names=None, network="small"):
    """network: of the teacher that is exported. Runs the steps that are named, all by default, each as the command that a person would type; ends with the first
    that fails. The one-step student has stages of its own: it takes hours."""
    if unknown := set(names or ()) - set(STEPS):
        raise SystemExit(f"There is no step {', '.join(sorted(unknown))}: choose from {', '.join(STEPS)}.")
    for name in names or STEPS:
        for command in STEPS[name]:
            command = [*command, "--network", network] if name == "export" else command
            print(f"{name}: python -m {' '.join(command)}", flush=True)
            if code := subprocess.run([sys.executable, "-m", *command]).returncode:
                raise SystemExit(f"{name} failed with exit code {code}: the same command goes on from there with `rebuild {name}`.")
