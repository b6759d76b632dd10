"""Where and how a pipeline is edited: its transformer blocks, and exact, reversible edits of a host object."""

from contextlib import contextmanager

ABSENT = object()


class Refused(ValueError):
    """A method cannot be applied to this pipeline or run. The text says why and what to do instead."""


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


def halved(size):
    """The grid after one of the U-Net's downsamplers (stride 2, padding 1)."""
    return tuple((side + 1) // 2 for side in size)


def transformer_blocks(unet, grid):
    """Every transformer block of a UNet2DConditionModel in order of execution: [(name, block, (h, w))].

    grid: (height, width) of the latents; (h, w): the block's own grid, so that it sees h * w tokens.
    """
    size, stages = tuple(grid), []
    for i, stage in enumerate(unet.down_blocks):
        stages.append((f"down_blocks.{i}", stage, size))
        size = halved(size) if stage.downsamplers else size
    mirrored = [size for _, _, size in reversed(stages)]
    stages.append(("mid_block", unet.mid_block, size))
    stages += [(f"up_blocks.{i}", stage, size) for i, (stage, size) in enumerate(zip(unet.up_blocks, mirrored))]
    return [(f"{prefix}.{name}", block, size) for prefix, stage, size in stages if stage is not None
            for name, block in stage.named_modules() if hasattr(block, "attn1")]
