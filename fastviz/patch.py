"""Exact, reversible edits of a host object: the only code that writes to a pipeline."""

from contextlib import contextmanager

ABSENT = object()


@contextmanager
def replaced(host, **attributes):
    """Sets attributes of `host` for the duration of a with block and puts back exactly what was there.

    Modifications:
     - entries of `host.__dict__` named by `attributes`; an entry that was absent before is deleted again.

    Entries are written past any `__setattr__`, so neither torch's module registration nor diffusers' configuration
    notices, and a submodule of the same name is shadowed, not moved. Leave nested blocks in reverse order.
    """
    entries = host.__dict__
    before = {name: entries.get(name, ABSENT) for name in attributes}
    try:
        entries.update(attributes)
        yield host
    finally:
        for name, value in before.items():
            if value is ABSENT:
                entries.pop(name, None)
            else:
                entries[name] = value
