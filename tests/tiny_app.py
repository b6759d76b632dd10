"""app.py with a model of random weights, from the folder TINY, in the place of the shipped one. SIGUSR1 tells its containers."""

import asyncio
import collections
import dataclasses
import gc
import json
import os
import runpy
import signal
import sys
from pathlib import Path

sys.path.insert(0, os.getcwd())  # the tests run it from the project's root
SIZED = (dict, list, set, collections.deque)


def containers(*_):
    """Writes {id: [type, length, example of what is in it]} of everything that holds things to containers.json.

    Not of two tables of Gradio 6.31: one is bounded by 2000, of the other every session keeps a set, nearly always empty. Nor
    of what asyncio will do later: what was called off is thrown away only when it is the most of it. Nor of the names of
    files that can still be downloaded, which the janitor bounds together with the files.
    """
    from gradio.blocks import Blocks
    from gradio.queueing import Queue  # not before app.py has set what Gradio reads when imported

    gc.unfreeze()
    gc.collect()
    things = gc.get_objects()
    queues = [thing for thing in things if type(thing) is Queue]
    known = {id(table) for queue in queues for table in (queue.pending_messages_per_session, queue.pending_event_ids_session)}
    known |= {id(names) for thing in things if isinstance(thing, Blocks) for names in thing.temp_file_sets}
    known |= {id(thing._scheduled) for thing in things if isinstance(thing, asyncio.BaseEventLoop)}
    found = {id(each): each for thing in things for each in (thing, *gc.get_referents(thing)) if isinstance(each, SIZED)}
    told = {key: [type(each).__name__, len(each), repr(next(iter(each)))[:80]] for key, each in found.items() if len(each) >= 8 and key not in known}
    part = Path(os.environ["TMPDIR"], "containers.part")
    part.write_text(json.dumps(told))
    part.rename(part.with_suffix(".json"))


def main():
    from fastviz import models

    models.MODELS["stickers"] = dataclasses.replace(models.MODELS["stickers"], source=os.environ["TINY"])
    signal.signal(signal.SIGUSR1, containers)
    runpy.run_path("app.py", run_name="__main__")


if __name__ == "__main__":
    main()
