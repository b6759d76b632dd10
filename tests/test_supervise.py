"""The supervisor starts a server again that crashed, gives up where that is useless, and never leaves one behind."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
from serving import PATIENCE, ROOT, wait

from fastviz import supervise

SERVER = """
import os, sys, time
from fastviz import supervise
supervise.follow()
print(os.getpid(), flush=True)
time.sleep(600)
"""


def run(tmp_path, monkeypatch, codes, clock=time.time):
    """keep() with a command that ends with each of `codes` in turn -> (what it returned, its pauses)."""
    script, pauses = tmp_path / "server.py", []
    script.write_text(f"""
import os, pathlib
left = pathlib.Path({str(tmp_path / "starts")!r})
count = len(left.read_text()) if left.exists() else 0
left.write_text("x" * (count + 1))
code = {codes!r}[count]
os.kill(os.getpid(), -code) if code < 0 else os._exit(code)
""")
    monkeypatch.setattr(supervise, "time", SimpleNamespace(sleep=pauses.append, time=clock))
    return supervise.keep([sys.executable, str(script)]), pauses


@pytest.mark.parametrize("codes, pauses", (
    ([0], []),
    ([70, 0], [1]),
    ([-signal.SIGKILL, -signal.SIGSEGV, 70, 1, 3, 70, 70, 0], [1, 2, 4, 8, 16, 30, 30]),
))
def test_what_crashed_is_started_again_and_later_each_time(tmp_path, monkeypatch, codes, pauses):
    assert run(tmp_path, monkeypatch, codes) == (0, pauses)


@pytest.mark.parametrize("code", (1, 2))
def test_a_server_that_cannot_begin_is_not(tmp_path, monkeypatch, code):
    assert run(tmp_path, monkeypatch, [code]) == (code, [])


def test_a_start_that_lasted_is_no_failed_one(tmp_path, monkeypatch):
    now = iter(range(0, 100_000, 1000))  # every look at the clock is much later
    assert run(tmp_path, monkeypatch, [70, 70, 0], lambda: next(now)) == (0, [1, 1])


@pytest.mark.parametrize("by", (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL), ids=lambda by: by.name)
def test_however_it_ends_nothing_stays_behind(tmp_path, by):
    (tmp_path / "app.py").write_text(SERVER)
    ready = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell's jobs in the background ignore it
    code = f"{ready}; import sys, pathlib; from fastviz import supervise; supervise.APP = pathlib.Path({str(tmp_path / 'app.py')!r}); sys.exit(supervise.main())"
    running = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    server = int(running.stdout.readline())
    running.send_signal(by)
    assert running.wait(PATIENCE) == (0 if by in (signal.SIGTERM, signal.SIGINT) else -by)
    wait(lambda: not psutil.pid_exists(server))
    running.stdout.close()


def test_a_server_without_a_supervisor_reads_no_input():
    code = "from fastviz import supervise; supervise.follow(); import threading; print(threading.active_count())"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout == "1\n"


def test_it_starts_the_page():
    assert supervise.APP == ROOT / "app.py" and supervise.APP.is_file()


def test_a_page_that_refuses_its_options_ends_the_supervisor_with_its_sentence():
    environment = {name: value for name, value in os.environ.items() if name != "FASTVIZ_PASSWORD"}
    done = subprocess.run([sys.executable, "-m", "fastviz.supervise", "--profile", "classroom"], cwd=ROOT, capture_output=True, text=True,
                          timeout=PATIENCE, env=environment)
    assert done.returncode in supervise.USELESS and "FASTVIZ_PASSWORD" in done.stderr
    assert "Fatal" not in done.stderr and "starts again" not in done.stderr
