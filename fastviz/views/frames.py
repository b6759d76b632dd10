"""What a traced run did inside, as small overlays for its picture, one per sampling step: what there is, and export.

Channels are a Trace's: {channel: {(step, layer): array}}. Drawn in frames_merged, frames_pruned and frames_attention.
"""

import numpy as np
from PIL import Image

from .frames_attention import highest, looks, moved_cross, moved_self, point, words
from .frames_merged import distinct_groups, groups, histogram, similarity
from .frames_paint import Frames, framed
from .frames_pruned import copies, importance, kept, source

KINDS = {  # key: (channel, layers that end so, label, how it is drawn)
    "groups": ("tome.labels", "", "Merged tokens, in the picture's colours", groups),
    "labels": ("tome.labels", "", "Merged tokens, each group in its own colour", distinct_groups),
    "similarity": ("tome.similarity", "", "How unlike the merged tokens were", similarity),
    "histogram": ("tome.similarity", "", "How many merged how much alike", histogram),
    "kept": ("atedm.kept", "", "Which tokens are left out", kept),
    "importance": ("atedm.importance", "", "How important each token is", importance),
    "source": ("atedm.source", "", "What left out tokens get", source),
    "moved.self": ("attention_reuse.moved", ".attn1", "Where reused attention to the picture is out of date", moved_self),
    "moved.cross": ("attention_reuse.moved", ".attn2", "Where reused attention to the words is out of date", moved_cross),
}
MILLISECONDS = (125, 1500)  # of a frame, and of the last one


def kinds(channels):
    """{key: label} of the overlays that a run's records allow, the first one to be shown first; {} for none."""
    found = {key: label for key, (channel, end, label, _) in KINDS.items()
             if any(layer.endswith(end) for _, layer in channels.get(channel, ()))}
    if not any(copies(array[None]).any() for array in channels.get("atedm.source", {}).values()):
        found.pop("source", None)
    return found


def frames(channels, kind, layer, steps, pictures):
    """Frames of `kind`, one of `kinds(channels)`, in the transformer block `layer` of a run of `steps` steps, in the colours of
    `pictures`: PIL, one for each step, or one for all."""
    return KINDS[kind][3](channels, layer, steps, pictures)


def removed(steps):
    """Frames of a block that a run's network does not have."""
    return framed(None, {}, steps, [("#000000", "black in the strip: blocks that this row's network does not have")],
                  "This part of the network was removed from the one that draws here.", dict.fromkeys(range(steps), "removed from this network"))


def sheet(images, columns=10):
    """All overlays (steps, h, w, 4) in one RGBA picture, row by row."""
    steps, h, w, _ = images.shape
    columns = min(columns, steps)
    rows = -(-steps // columns)
    cells = np.zeros((rows * columns, h, w, 4), np.uint8)
    cells[:steps] = images
    return Image.fromarray(cells.reshape(rows, columns, h, w, 4).swapaxes(1, 2).reshape(rows * h, columns * w, 4))


def animation(base, images, path):
    """Writes overlays (steps, h, w, 4) over pictures as a .gif or .webp that repeats: about 8 frames a second, the last
    one held. base: PIL pictures, one per step or one for all. Equal frames that follow each other may be stored as one
    that is shown longer."""
    base = base if len(base) == len(images) else [base[0]] * len(images)
    first, *others = (laid(picture, overlay) for picture, overlay in zip(base, images))
    short, long = MILLISECONDS
    told = dict(lossless=True) if str(path).endswith(".webp") else {}
    first.save(path, save_all=True, append_images=others, duration=[short] * len(others) + [long], loop=0, **told)


def laid(picture, overlay):
    """One overlay over a picture, which it is enlarged to without smoothing."""
    overlay = Image.fromarray(overlay)
    size = tuple(map(max, picture.size, overlay.size))
    over = overlay.resize(size, Image.Resampling.NEAREST)
    return Image.alpha_composite(picture.convert("RGBA").resize(size), over).convert("RGB")
