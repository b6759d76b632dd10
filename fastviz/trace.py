"""What passes between a run and the methods attached to it: the Context, and the Trace that a traced run fills."""

import json
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

SCHEMA = 2  # of the files that `Trace.save` writes: raised when what CHANNELS says changes
CHANNELS = {  # channel: (layer, shape, type, what it is); N tokens of a block's grid h x w, of the half that sees the prompt
    "attention.cross": ("attn2", "T h w", "float16", "share of each place's attention that goes to each of the prompt's tokens, mean of the heads; h, w at most 32"),
    "attention.self": ("attn1", "hq wq hk wk", "uint8", "round(255 sqrt(p / max p)) of each query's shares p, mean of the heads; sides at most 16"),
    "estimate": ("", "C H W", "float16", "the picture's latents as the network estimates them at this step"),
    "attention_reuse.age": ("attn1, attn2", "", "int16", "steps since what was used was computed; 0: now"),
    "attention_reuse.staleness": ("attn1, attn2", "", "float32", "Frobenius norm of what was used less what would be computed, over that of the latter; of both halves"),
    "attention_reuse.moved": ("attn1, attn2", "h w", "float16", "share of each token's attention, or of its output's norm, that would go elsewhere by now"),
    "tome.labels": ("block", "h w", "int32", "merged token that each token belongs to"),
    "tome.destinations": ("block", "D", "int32", "tokens that others may merge into"),
    "tome.tokens": ("block", "2", "int32", "tokens in, tokens after merging"),
    "tome.parts": ("block", "3", "bool", "whether self-attention, cross-attention and feed-forward saw merged tokens"),
    "tome.similarity": ("block", "h w", "float16", "cosine of each merged source with its destination; NaN elsewhere"),
    "atedm.kept": ("transformer", "h w", "bool", "whether the token is kept to the last layer"),
    "atedm.source": ("transformer", "h w", "int32", "token that stands for each one, itself where it is kept; -1: none"),
    "atedm.tokens": ("transformer", "2", "int32", "tokens in, tokens after pruning"),
    "atedm.importance": ("transformer", "h w", "float16", "importance that decided, 1 on average; where some were left out"),
    "olss.terms": ("scheduler", "n", "float64", "size of each term of the step, |weight| times root mean square: of the latents at the start, then of every output so far"),
    "olss.from_ddim": ("scheduler", "", "float32", "root mean square of the step's result less DDIM's"),
}


class Trace:
    """Named channels of small arrays by (step, layer), within a byte budget. Knows shapes, not methods."""

    def __init__(self, budget=128 * 2**20):
        """budget: bytes of array data that may be kept; what comes after it is counted in `dropped`, not kept."""
        self.budget, self.nbytes = budget, 0
        self.about = {}  # plain values: what was run, see lens.about
        self.channels = defaultdict(dict)
        self.dropped = Counter()

    def add(self, channel, step, layer, value, share=1.0):
        """Keeps a copy of `value` (tensor, array or number) as `channel` at (step, layer), as long as all that is kept
        then stays within `share` of the budget: what is large and can be missed leaves room for the rest."""
        array = value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
        if self.nbytes + array.nbytes > share * self.budget:
            self.dropped[channel] += 1
            return
        self.channels[channel][step, layer] = array.copy()
        self.nbytes += array.nbytes

    def save(self, path):
        """Writes one compressed .npz: keys are channel|step|layer with steps from 0, see CHANNELS; `about` is a JSON text."""
        entries = {"about": np.array(json.dumps({"schema": SCHEMA, **self.about}))} | {f"{channel}|{step}|{layer}": array
                   for channel, cells in self.channels.items() for (step, layer), array in cells.items()}
        np.savez_compressed(path, **entries)


def load(path, block=None):
    """Reads a Trace that `save` wrote; with the name of a block, only what its own layers and the transformer that it
    belongs to recorded."""
    trace = Trace(budget=float("inf"))  # it was within a budget when it was made
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            if key == "about":
                trace.about = json.loads(str(file[key]))
                continue
            channel, step, layer = key.split("|", 2)
            if block is None or f"{layer}.".startswith(f"{block}.") or layer and block.startswith(f"{layer}."):
                trace.add(channel, int(step), layer, file[key])
    return trace


def counterparts(grids, others):
    """{block of a network: the block of another network on the same side (down, mid or up) and grid, at the same place among
    them, or None}: a student that lost a stage numbers the others anew. grids, others: {block: (h, w)}, see lens.about."""
    def place(name, size):
        return name.partition("_block")[0], tuple(size), name.partition(".attentions.")[2]

    found = {place(name, size): name for name, size in others.items()}
    return {name: found.get(place(name, size)) for name, size in grids.items()}


@dataclass
class Context:
    """What one run tells the methods attached to it, and what they report back. Made anew for every run.

    steps: sampling steps of this run; seed, guidance: the request's, guidance 1 where weights do without; grid: (height, width) of the latents.
    device: type of the device that the run is for, such as "cuda", also where it is only counted, on the meta device.
    step: index of the sampling step under way, moved on by `start`.
    starting: functions of the step, called in order by `start`. What a method decides for a step it decides there, and
        stores it as tensors or as one of a few values: a compiled network then has one graph for each kind of step.
    frozen: (step, part) pairs, part "self" or "cross", at which stored attention is used again. A method that draws or
        chooses tokens must then keep its last assignment: a stored map belongs to the tokens that it was made with.
    pruned: names of transformer blocks that see only some of their grid's tokens at this step.
    seen: in a traced run, block name -> which of the tokens that its attentions see stands for each place of its grid,
        (h w,) integers, -1 for none; where it is missing, the tokens are the grid's.
    acted: method key -> set of (layer name, step) at which the method changed something.
    kept_bytes: method key -> bytes that the method keeps from step to step.
    trace: where to record, or None in a timed run.
    ranges: whether a profiler watches, see ranges.py.
    """
    steps: int
    seed: int = 0
    grid: tuple = (32, 32)
    device: str = "cpu"
    guidance: float = 1.0
    step: int = 0
    starting: list = field(default_factory=list)
    frozen: set = field(default_factory=set)
    pruned: set = field(default_factory=set)
    seen: dict = field(default_factory=dict)
    acted: dict = field(default_factory=lambda: defaultdict(set))
    kept_bytes: dict = field(default_factory=dict)
    trace: Trace | None = None
    ranges: bool = False

    def start(self, step):
        """Begins sampling step `step`; to be called before the network runs. Returns its kind, what the methods decided:
        steps of equal kinds execute the same operations."""
        self.step = step
        return tuple(function(step) for function in self.starting)

    @contextmanager
    def at_start(self, function, first=False):
        """Has `function` called at the start of every step within a with block, `first` or after those before it."""
        self.starting.insert(0 if first else len(self.starting), function)
        try:
            yield
        finally:
            self.starting.remove(function)
