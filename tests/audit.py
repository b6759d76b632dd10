"""Known vulnerabilities of what requirements.lock pins, where their database can be reached: `make audit`, 1 where there are some."""

import json
import subprocess
import sys

import lock


def vulnerable(*options):
    """["name version: its vulnerabilities"] as pip-audit finds them; None where it cannot reach its data."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(lock.ROOT / "requirements.lock"), "--no-deps", "--disable-pip",
               "-s", "osv", "--format", "json", "--progress-spinner", "off", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        told = json.loads(done.stdout)["dependencies"]
    except ValueError:
        return None
    return [f"{each['name']} {each['version']}: {', '.join(fault['id'] for fault in each['vulns'])}" for each in told if each.get("vulns")]


if __name__ == "__main__":
    found = vulnerable(*sys.argv[1:])
    print("Known vulnerabilities could not be looked up: the database was not reached." if found is None
          else "\n".join(found) or "No known vulnerability in requirements.lock.")
    sys.exit(bool(found))
