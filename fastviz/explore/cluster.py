"""Sweeps on a Ray cluster. Every worker loads the model once, cells go to whoever is free, what comes back lies in the same
history as ever, and a cell whose worker is lost is run again. Needs `pip install ray`, and this project at the same path on
every machine. Ray asks the machine that it is begun on whether it is a cloud's (169.254.169.254); its reports are off.

Times of different devices are never mixed: the workers of one sweep all have the device and versions of the majority, and
how many of them share a machine is one more thing that a time, and so the key of a cell, depends on.
"""

import logging
import os
import socket
from collections import Counter, deque
from contextlib import contextmanager

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing here tells anybody that it was run

import ray

from .. import models
from ..request import BadRequest
from ..run import Lost, Stopped
from . import sweep as sweeping

log = logging.getLogger(__name__)
LOCAL = "local"
PATIENCE = 600  # s until workers must have come
TICK = 0.5  # s between two looks at Stop
LOSSES = 3  # workers that one cell may cost


class Worker:
    """One process with one model."""

    def __init__(self, model, threads):
        self.model, self.threads = model, threads

    def describe(self):
        """As sweep.described, once the model is loaded."""
        import torch

        torch.set_num_threads(self.threads)
        self.pipe = models.load(self.model)
        return sweeping.described(self.pipe)

    def attempt(self, *cell):
        return sweeping.attempt(self.pipe, *cell)


class Crew:
    """The workers of a sweep. free: those with nothing to do; coming: {future: worker} of those that load their model;
    told, files: what all have in common, None until `settle`."""

    def __init__(self, model, cores, most):
        if cores is not None and cores < 1:
            raise BadRequest("ray", "--cores must be 1 or more.")
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        if any(node.get("GPU") for node in nodes):
            cores, room, needs = 1, [int(node.get("GPU", 0)) for node in nodes], {"num_gpus": 1, "num_cpus": 1}
        else:
            cores = cores or int(min((node["CPU"] for node in nodes), default=1))
            room, needs = [int(node["CPU"] // cores) for node in nodes], {"num_cpus": cores}
        if not any(room):
            raise BadRequest("ray", f"No machine of this cluster has {cores} cores: give fewer with --cores.")
        self.make = lambda: ray.remote(Worker).options(**needs).remote(model, cores)
        self.beside, self.free, self.coming, self.told, self.files = min(max(room), most), [], {}, None, None
        for _ in range(min(sum(room), most)):
            self.call()

    def call(self):
        worker = self.make()
        self.coming[worker.describe.remote()] = worker

    def settle(self):
        """Waits for the first workers, and lets those go whose device is not the majority's."""
        arrived, _ = ray.wait(list(self.coming), num_returns=len(self.coming), timeout=PATIENCE)
        known = list(filter(None, map(self.arrive, arrived)))
        if not known:
            raise BadRequest("ray", f"No worker was ready within {PATIENCE} s: look at `ray status`.")
        self.told, self.files = majority([told for _, told in known])
        self.free = [worker for worker, told in known if told == (self.told, self.files)]
        if others := len(known) - len(self.free):
            log.warning("%d workers have another device or other versions, and times are not mixed: they do nothing.", others)
        if self.beside > 1:
            self.told = self.told | {"workers on a machine": self.beside}

    def arrive(self, future):
        """(worker, what it told of itself) of one that was coming; None of one that was lost on the way, and another is called."""
        worker = self.coming.pop(future)
        try:
            return worker, ray.get(future)
        except ray.exceptions.RayActorError:
            self.call()

    def welcome(self, future):
        """A worker that comes later than the others, if it is like them."""
        if come := self.arrive(future):
            worker, (told, files) = come
            if files == self.files and told.items() <= self.told.items():
                self.free.append(worker)


def majority(described):
    """The most frequent of several (environment, files); the first of those that are equally frequent."""
    return max(described, key=described.count)


@contextmanager
def joined(address):
    """A driver in the cluster at an address; `local`: one of this machine, made for this sweep."""
    options = {} if address == LOCAL else {"address": address}
    path = os.pathsep.join([str(models.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        host, _, port = address.rpartition("://")[2].rpartition(":")
        if port.isdecimal():
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself would try for minutes, and end the program
        ray.init(**options, include_dashboard=False if address == LOCAL else None, log_to_driver=False, logging_level="ERROR",
                 runtime_env={"env_vars": {"PYTHONPATH": path}})
    except (OSError, ValueError) as error:
        raise BadRequest("ray", f"There is no cluster at {address}: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


def run(plan, history, owner, address=LOCAL, cores=None, stop=None):
    """As sweep.run, on a cluster. cores: of a worker without a GPU; by default, all of the smallest machine, so that nothing
    else runs beside what is timed. Raises BadRequest where there is no cluster, or none of its workers comes or stays."""
    with joined(address):
        crew = Crew(plan.model, cores, len(plan.variants) * len(plan.units))
        crew.settle()
        sweep = sweeping.begun(plan, history, owner, crew.told, crew.files)
        yield sweep
        for _ in finished(sweep, history, crew, stop):
            yield sweep


def finished(sweep, history, crew, stop):
    """Yields after every cell that is finished, until all are."""
    waiting, running, losses, idle = deque(place for place in sweep.keys if sweep.cells[place] is None), {}, Counter(), 0.0
    while waiting or running:
        if crew.free and (place := next((place for place in waiting if after(sweep, *place)), None)):
            waiting.remove(place)
            try:
                wanted = sweeping.asked(sweep, *place, history)
            except BadRequest as error:
                sweep.cells[place] = {"error": str(error)}
                yield
            else:
                worker = crew.free.pop()
                running[worker.attempt.remote(*wanted)] = worker, place
            continue
        idle = 0.0 if running else idle + TICK
        if idle > PATIENCE:
            raise BadRequest("ray", f"All workers were lost and none came for {PATIENCE} s. What was finished is kept: the same sweep goes "
                             "on from there.")
        if not running and not crew.coming:
            crew.call()
        done, _ = ray.wait([*running, *crew.coming], timeout=TICK)
        if stop and stop():
            raise Stopped
        for future in done:
            if future in crew.coming:
                crew.welcome(future)
                continue
            worker, place = running.pop(future)
            try:
                answer = ray.get(future)
                crew.free.append(worker)
            except (ray.exceptions.RayActorError, Lost):
                losses[place] += 1
                ray.kill(worker)
                crew.call()
                if losses[place] < LOSSES:
                    waiting.appendleft(place)
                    continue
                answer = {"error": f"{LOSSES} workers were lost while they made this picture."}, None
            sweep.cells[place] = sweeping.finish(sweep, *place, history, *answer)
            yield


def after(sweep, v, u):
    """Whether a cell can be run now: what it is measured against is there."""
    f = sweeping.full_of(sweep, v)
    return f == v or sweep.cells[f, u] is not None
