"""Every run kept: what was asked and what came out in SQLite, its files beside it, within a budget; the oldest go first."""

import base64
import errno
import io
import json
import os
import shutil
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

from peewee import CharField, FloatField, IntegerField, Model, PeeweeException, SqliteDatabase, TextField

from ..models import ROOT
from ..request import BadRequest, methods_text
from ..store import files, load, recipe

FILE = "history.sqlite"
LIMIT = 2048  # MiB, of the command line's history
THUMB = 112  # px
SHOWN = 100  # runs that a search gives, at most
STALE = 3600  # seconds after which what a killed process left behind is thrown away
COMPARISON, SWEEP = "comparison", "sweep"


def home():
    """Where the history of this machine lies: FASTVIZ_HISTORY, or runs/history in the project."""
    return Path(os.environ.get("FASTVIZ_HISTORY") or ROOT / "runs" / "history")


def tables():
    """The tables, as classes that no other database knows."""
    class Run(Model):
        id = CharField(primary_key=True)
        owner = CharField(index=True)
        kind = CharField()
        made = FloatField(index=True)  # seconds since 1970
        prompt = TextField()
        device = TextField()
        words = TextField()  # everything that a search looks at
        told = TextField()  # JSON
        bytes = IntegerField()

    class Cell(Model):
        key = CharField(primary_key=True)
        made = FloatField()
        told = TextField()  # JSON
        bytes = IntegerField()

    return Run, Cell


class History:
    """The runs in one folder. owner: whose runs, a text; None sees everybody's. megabytes: what all files may take.

    Whatever the disk refuses is an OSError, of the database's file too.
    """

    def __init__(self, folder, megabytes=LIMIT):
        self.folder, self.limit = Path(folder), megabytes * 2**20
        (self.folder / "runs").mkdir(parents=True, exist_ok=True)
        (self.folder / "cells").mkdir(exist_ok=True)
        self.folder.chmod(0o700)  # prompts are nobody else's business
        self.base = SqliteDatabase(self.folder / FILE, pragmas={"journal_mode": "wal", "busy_timeout": 10_000})
        self.Run, self.Cell = tables()
        self.base.bind([self.Run, self.Cell])
        with self.at_work():
            self.base.create_tables([self.Run, self.Cell])

    @contextmanager
    def at_work(self):
        """A connection to the database for the length of a with block."""
        try:
            with self.base.connection_context():
                yield
        except PeeweeException as error:
            raise OSError(errno.ENOSPC if "full" in str(error) else errno.EIO, f"{self.folder / FILE}: {error}") from error

    # Comparisons

    def keep(self, owner, request, rows, environment, found=None):
        """Keeps a comparison -> its id. found: its files as store.files gives them, made here where they are missing."""
        found = files(request, rows, environment) if found is None else found
        told = {"recipe": recipe(request), "environment": environment, "rows": [brief(row) for row in rows]}
        id = uuid.uuid4().hex
        place = self.folder / "runs" / id
        try:
            place.mkdir()
            for name, data in found.items():
                (place / name).write_bytes(data)
            self.enter(id, owner, COMPARISON, request, methods_text(request.methods), environment, told, sum(map(len, found.values())))
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return id

    def enter(self, id, owner, kind, request, methods, environment, told, size):
        words = " ".join([request.prompt, methods, f"seed {request.seed}", request.model, environment.get("device", ""), kind])
        with self.at_work():
            self.Run.insert(id=id, owner=owner, kind=kind, made=time.time(), prompt=request.prompt, words=words, bytes=size,
                            device=environment.get("device", ""), told=json.dumps(told, allow_nan=False)).on_conflict_replace().execute()
        self.trim()

    def open(self, owner, id):
        """(Request, Rows, environment) of a comparison, the Rows with their pictures but without their Run. BadRequest
        when there is none of this owner's, or it is a sweep."""
        if self.entry(owner, id).kind == SWEEP:
            raise BadRequest("history", "This run is a sweep and not one comparison: begin the same sweep again, and what is finished comes back "
                             "at once.")
        try:
            return load(self.folder / "runs" / id)
        except (OSError, ValueError) as error:
            raise BadRequest("history", "This run's files are gone or damaged: delete it.") from error

    # All kinds

    def entry(self, owner, id):
        """The Run called `id`. BadRequest when there is none, or it is somebody else's: which of both is not told."""
        with self.at_work():
            found = self.Run.get_or_none(self.mine(owner) & (self.Run.id == id)) if isinstance(id, str) else None
        if found is None:
            raise BadRequest("history", "There is no such run in the history.")
        return found

    def mine(self, owner):
        return self.Run.id.is_null(False) if owner is None else self.Run.owner == owner

    def search(self, owner, text=""):
        """The newest runs in which every word of `text` occurs, as plain values."""
        asked = self.mine(owner)
        for word in text.split():
            asked &= self.Run.words.contains(word)
        with self.at_work():
            found = list(self.Run.select().where(asked).order_by(self.Run.made.desc()).limit(SHOWN))
        return [self.plain(run) for run in found]

    @staticmethod
    def plain(run):
        """A Run as plain values, with what was told of it."""
        return {name: getattr(run, name) for name in ("id", "kind", "made", "prompt", "device", "bytes")} | json.loads(run.told)

    def rows_of(self, owner, id):
        """A comparison's plain values, to lay beside another's. BadRequest where it is none, or as of `entry`."""
        run = self.entry(owner, id)
        if run.kind != COMPARISON:
            raise BadRequest("history", "Only comparisons can be laid side by side: open the sweep instead.")
        return self.plain(run)

    def delete(self, owner, id):
        """Deletes a run and its files. BadRequest as of `entry`."""
        self.remove(self.entry(owner, id))
        self.sweep_cells()

    def remove(self, run):
        with self.at_work():
            run.delete_instance()
        shutil.rmtree(self.folder / "runs" / run.id, ignore_errors=True)

    # Cells of sweeps

    def cell(self, key):
        """The plain values of a finished cell, or None."""
        with self.at_work():
            found = self.Cell.get_or_none(self.Cell.key == key)
        return found and json.loads(found.told)

    def picture_of(self, key):
        return self.folder / "cells" / f"{key}.png"

    def finish(self, key, told, image):
        """Keeps a finished cell: its picture first, so that a cell that is there is whole. image: None for one that failed."""
        path, size = self.picture_of(key), 0
        if image is not None:
            part = path.with_suffix(f".{os.getpid()}.part")
            image.save(part, "PNG")
            size = part.stat().st_size
            part.replace(path)
        with self.at_work():
            self.Cell.insert(key=key, made=time.time(), told=json.dumps(told, allow_nan=False), bytes=size).on_conflict_replace().execute()

    # The budget

    def trim(self):
        """Deletes the oldest runs until the rest is within the limit, and what nothing refers to. The newest stays."""
        with self.at_work():
            runs = list(self.Run.select(self.Run.id).order_by(self.Run.made))
        while len(runs) > 1 and self.size() > self.limit:
            self.remove(runs.pop(0))
            self.sweep_cells()
        known = {run.id for run in runs}
        for place in (self.folder / "runs").iterdir():
            if place.name not in known and time.time() - place.stat().st_mtime > STALE:
                shutil.rmtree(place, ignore_errors=True)

    def size(self):
        """Bytes of all files."""
        from peewee import fn

        with self.at_work():
            return sum(kind.select(fn.SUM(kind.bytes)).scalar() or 0 for kind in (self.Run, self.Cell))

    def sweep_cells(self):
        """Deletes the cells that no sweep refers to any more."""
        with self.at_work():
            sweeps = self.Run.select(self.Run.told).where(self.Run.kind == SWEEP)
            used = {key for run in sweeps for key in json.loads(run.told)["keys"]}
            for cell in [cell for cell in self.Cell.select(self.Cell.key) if cell.key not in used]:
                cell.delete_instance()
                self.picture_of(cell.key).unlink(missing_ok=True)


def brief(row):
    """A Row in the list of runs."""
    lpips = row.metrics.get("lpips")
    return {"stack": row.stack, "title": row.title, "seconds": row.seconds, "error": row.error,
            "lpips": lpips if isinstance(lpips, float) else None, "thumb": row.image and thumb(row.image)}


def thumb(image):
    """A small copy of a picture as a data URI."""
    file = io.BytesIO()
    image.resize((THUMB, THUMB)).save(file, "WEBP", quality=75)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
