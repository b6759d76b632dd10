"""The server's temp folder: its own, emptied at start, and bounded by a janitor."""

import logging
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

from . import health

log = logging.getLogger(__name__)


def fresh(name):
    """An empty folder of that name that only this user can read. PermissionError when somebody else holds the name."""
    folder = Path(tempfile.gettempdir()) / name
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else: remove it or set TMPDIR.")
    folder.chmod(0o700)
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return folder


def sweep(folder, now, seconds, megabytes):
    """Deletes files last written before now - seconds, then the oldest until the rest is within `megabytes`.

    Files that vanish meanwhile are fine. Returns the bytes that are left.
    """
    files = sorted(filter(None, map(look, Path(folder).rglob("*"))))
    left = sum(size for _, size, _ in files)
    for written, size, path in files:
        if written < now - seconds or left > megabytes * 2**20:
            path.unlink(missing_ok=True)
            left -= size
    for path in sorted(Path(folder).rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()) and path.stat().st_mtime < now - seconds:
            path.rmdir()
    return left


def look(path):
    """(last written, bytes, path) of a file; None for a folder and for what has vanished."""
    try:
        told = path.stat()
    except FileNotFoundError:
        return None
    return None if path.is_dir() else (told.st_mtime, told.st_size, path)


def keep(folder, seconds, megabytes, known=(), every=30.0):
    """Starts the janitor: a thread that sweeps for as long as the process lives and outlives its own errors.

    known: sets of paths, such as Gradio's of what it has served, which never forget by themselves; files that are gone
    are taken out of them.
    """
    def work():
        while True:
            try:
                sweep(folder, time.time(), seconds, megabytes)
                for paths in known:
                    paths -= {path for path in paths.copy() if not os.path.exists(path)}
                health.note("janitor", "")
            except Exception:  # whatever it is: a server without a janitor fills the disk
                log.exception("The janitor could not sweep %s and tries again.", folder)
                health.note("janitor", "Old files could not be cleared: the server's log says why.")
            time.sleep(every)

    thread = threading.Thread(target=work, name="janitor", daemon=True)
    thread.start()
    return thread
