"""The lock file beside the loose requirements: complete, within the floors, and naming no host."""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import audit
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


@contextmanager
def database(vulnerabilities):
    """The address of a database like OSV's that knows {name: [ids]}."""
    class Answers(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            told = [{"id": each, "summary": "", "affected": [{"package": asked["package"], "ranges": []}]}
                    for each in vulnerabilities.get(asked["package"]["name"], ())]
            body = json.dumps({"vulns": told}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()


def test_known_vulnerabilities_are_told_where_their_database_is_reached():
    pytest.importorskip("pip_audit", reason="pip-audit is not installed: pip install pip-audit")
    with database({"pillow": ["GHSA-0000"]}) as url:
        assert audit.vulnerable("--osv-url", url) == [f"pillow {PINNED['pillow']}: GHSA-0000"]
    with database({}) as url:
        assert audit.vulnerable("--osv-url", url) == []
    assert audit.vulnerable("--osv-url", "http://127.0.0.1:1/v1/query") is None
