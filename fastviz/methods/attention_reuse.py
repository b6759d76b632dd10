"""Attention maps that were computed at one sampling step are used again at later ones.

Changed: the processors of the U-Net's attentions. A step that reuses computes V, A V and W_o; it skips W_q, W_k, Q K^T
and the softmax. Steps that compute call the production kernel untouched, but for the last one before a run of reusing
steps: it makes its map, keeps it and goes on with it, which is as much work. Cross-attention's values come from the
prompt and are the same at every step, so a kept map would give the kept step's output again: that is what is kept, at
no cost later. Hunter et al., arXiv 2401.01008, where late reuse is called HURRY. Keeping the output of self-attention,
too, is the idea of Zhao et al., Pyramid Attention Broadcast, arXiv 2408.12588.
"""

import json
import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from .. import fitted, models
from ..knobs import choice, number, text
from ..patch import Refused, replaced, transformer_blocks

KEY = "attention_reuse"
TITLE = "Attention reuse"
SAYS = "Late steps look where an earlier step looked, instead of working it out again."
PAPER = ("Hunter et al., Fast Sampling Through The Reuse Of Attention Maps", "https://arxiv.org/abs/2401.01008")
ROLE = "patch"

STANDARD = ("AttnProcessor2_0", "AttnProcessor")  # the processors whose arithmetic this file repeats
SEARCHED = "phast"  # the name of whatever schedule was searched for a model's weights
FILL = 0.8  # of the free memory that kept maps may take; the rest is for activations


@dataclass(frozen=True)
class Knobs:
    """share = 0 and no schedule is the full model."""
    share: float = number(0.5, 0.0, 1.0, "Share of the steps that reuse, the last ones. More is faster and further "
                          "from the full model; the first step always computes.")
    maps: str = choice("both", {"self": "Self-attention", "cross": "Cross-attention", "both": "Both"},
                       "Which attentions reuse. Self-attention saves most, and takes most memory.")
    keep: str = choice("map", {"map": "Map (the paper)", "output": "Output (pyramid attention broadcast)"},
                       "What is kept. A map is applied to the picture's new values (those of the words stay the same); a kept output "
                       "skips the attention as a whole.")
    schedule: str = text("", "Which steps reuse, if not the last ones: phast takes the schedule that `python -m fastviz "
                         "search reuse` found for this share (our reconstruction of the paper's PHAST); or one digit a "
                         "step, 1 computes, 0 reuses, such as 1110100 for 7 steps.", tinker=True)


NEUTRAL = Knobs(share=0.0)


def check(knobs):
    """ValueError with a sentence when the schedule cannot be read."""
    if knobs.schedule not in ("", SEARCHED) and (set(knobs.schedule) - set("01") or knobs.schedule[0] != "1"):
        raise ValueError(f"the schedule must be {SEARCHED}, or ones and zeros that begin with 1: the first step has "
                         "nothing to reuse.")


# The schedule, section 3 of the paper

def hurry(steps, k):
    """HURRY(k): gamma of `steps` ones and zeros, of which the last k are 0 = reuse. The first stays 1."""
    k = min(k, steps - 1)
    return (1,) * (steps - k) + (0,) * k


def gamma_of(knobs, steps, pipe=None):
    """The schedule for a run of `steps` steps of `pipe`. Refused when one was written for another number of steps, or
    when the searched one is not there."""
    check(knobs)
    late = hurry(steps, round(knobs.share * steps))
    if not knobs.schedule or (knobs.schedule == SEARCHED and all(late)):
        return late
    if knobs.schedule == SEARCHED:
        return searched(fitted.folder(pipe), steps, late.count(0), knobs.maps, knobs.keep, type(pipe.scheduler).__name__)
    if len(knobs.schedule) != steps:
        raise Refused(f"The schedule has {len(knobs.schedule)} digits and the run {steps} steps: "
                      "write one digit for each step.")
    return tuple(map(int, knobs.schedule))


def schedule_file(folder, steps, k, maps, keep):
    """Where the searched schedule for the model in `folder` lies: beside it."""
    return fitted.beside(folder, "reuse") / f"{steps}-{k}-{maps}-{keep}.json"


def searched(folder, steps, k, maps, keep, scheduler):
    """The schedule that a search found for the weights in `folder` under the scheduler of that name. Refused, with the command
    that makes one, when there is none or it was searched for other weights or another scheduler."""
    if folder is None:
        raise Refused("Searched schedules lie beside a model's files, and this model has none: write one as ones and "
                      "zeros.")
    path = schedule_file(folder, steps, k, maps, keep)
    name = path.relative_to(folder.parents[1]).as_posix()
    command = (f"`python -m fastviz search reuse {models.model_argument(folder)} --steps {steps} --reuse {k} "
               f"--maps {maps} --keep {keep}`")
    if not path.is_file():
        raise Refused(f"There is no searched schedule {name}: make it with {command}.")
    try:
        told = json.loads(path.read_text())
        schedule, weights = told["schedule"], told["weights"]
        gamma, own = tuple(map(int, schedule)), told["settings"]["scheduler"]
    except (ValueError, KeyError, TypeError):
        gamma, weights = (), None
    if len(gamma) != steps or gamma[0] != 1 or set(gamma) - {0, 1} or gamma.count(0) != k:
        raise Refused(f"{name} holds no schedule of {steps} steps of which {k} reuse: delete it and make it with "
                      f"{command}.")
    if weights != fitted.weights(folder):
        raise Refused(f"{name} was searched for other weights: make it anew with {command}.")
    if own != scheduler:
        raise Refused(f"{name} was searched under {own}, and this row runs under {scheduler}: write a schedule as ones and zeros.")
    return gamma


def sources(gamma):
    """For each step i the step j = max{k <= i : gamma_k = 1} whose map it uses."""
    found = []
    for i, computed in enumerate(gamma):
        found.append(i if computed else found[-1])
    return tuple(found)


def stored(gamma):
    """For each step whether what it computes is kept: the next one reuses."""
    return tuple(bool(now and not after) for now, after in zip(gamma, (*gamma[1:], 1)))


def labels(gamma):
    """What happens at each step: "compute", "store" (compute and keep) or "reuse"."""
    return tuple("store" if store else "compute" if now else "reuse" for now, store in zip(gamma, stored(gamma)))


def kinds(knobs, steps):
    """One label per step, equal labels for equal work. What a search found is known only with the model: no two steps
    count as equal then."""
    return tuple(range(steps)) if knobs.schedule == SEARCHED else labels(gamma_of(knobs, steps))


# The arithmetic of diffusers' AttnProcessor2_0 on (B, N, C), in two halves

def inputs(attn, x, context):
    """What the projections of queries and of keys and values read: (B, N, C) and (B, M, D)."""
    if attn.group_norm is not None:
        x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
    if context is None:
        return x, x
    return x, attn.norm_encoder_hidden_states(context) if attn.norm_cross else context


def heads(attn, x):
    """(B, N, heads * d) -> (B, heads, N, d)."""
    return x.unflatten(2, (attn.heads, -1)).transpose(1, 2)


def queries_and_keys(attn, q, k):
    """Q / sqrt(d) and K from their projections (B, N, heads * d) and (B, M, heads * d): (B, heads, N or M, d)."""
    q, k = heads(attn, q), heads(attn, k)
    q = q if attn.norm_q is None else attn.norm_q(q)
    k = k if attn.norm_k is None else attn.norm_k(k)
    return q * q.shape[-1] ** -0.5, k


def attention_map(attn, x, context=None, mask=None):
    """softmax(Q K^T / sqrt(d)): (B, heads, N, M). No gradients."""
    import torch

    x, context = inputs(attn, x, context)
    q, k = queries_and_keys(attn, attn.to_q(x), attn.to_k(context))
    logits = q.flatten(0, 1) @ k.flatten(0, 1).transpose(1, 2)
    if mask is not None:
        logits += attn.prepare_attention_mask(mask, context.shape[1], len(x))
    return torch.softmax(logits, -1, out=logits).unflatten(0, q.shape[:2])  # in place: maps are what takes memory here


def apply_map(attn, weights, x, context=None):
    """W_o (A V) with A given: weights (B, heads, N, M), x (B, N, C) -> (B, N, C)."""
    from .. import kernels

    v = attn.to_v(inputs(attn, x, context)[1])
    out = attn.to_out[1](attn.to_out[0](kernels.apply(weights, v)))
    return (out + x if attn.residual_connection else out) / attn.rescale_output_factor


# Memory

class Ledger:
    """Adds up, during the first step, what all layers are going to keep, and refuses before it is too much."""

    def __init__(self, context, room):
        self.context, self.room, self.sizes = context, room, {}

    def enter(self, name, size):
        self.sizes[name] = size
        total = self.context.kept_bytes[KEY] = sum(self.sizes.values())
        if total > self.room:
            raise Refused(f"What is to be kept takes more than the {self.room / 2**30:.1f} GiB of memory that are free "
                          "for it: keep the output instead of the map, reuse only cross-attention, or choose a smaller "
                          "picture.")


# The processors

class MapReuse:
    """Modifications of one attention's processor:
     - on steps that compute: none, `before` is called
     - on the last one before a run of reusing steps: the map is made and kept, and the output is made from it
     - on steps that reuse: the kept map is applied to new values
    The ledger is read by the eager network alone: a compiled one takes what it needs, or runs out of memory.
    """

    def __init__(self, before, name, grid, gamma, context, ledger):
        """grid: (h, w) of the tokens that ask, unless another method merged or left out some of them."""
        self.before, self.name, self.grid, self.gamma, self.context, self.ledger = before, name, grid, gamma, context, ledger
        self.labels, self.kept = labels(gamma), None

    def start(self, step):
        self.label = self.labels[step]
        if self.label == "reuse":
            self.context.acted[KEY].add((self.name, step))
        if self.label == "store":
            self.kept = None  # the memory is needed for what comes in its place
        return self.label

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **others):
        import torch

        if self.label == "reuse":
            return self.again(attn, hidden_states, encoder_hidden_states)
        if not torch.compiler.is_compiling() and self.name not in self.ledger.sizes:
            self.ledger.enter(self.name, self.size(attn, hidden_states, encoder_hidden_states))
        run = self.store if self.label == "store" else self.before
        return run(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **others)

    def size(self, attn, x, context):
        """Bytes of what this layer keeps."""
        keys = x if context is None else context
        return len(x) * attn.heads * x.shape[1] * keys.shape[1] * x.element_size()

    def store(self, attn, x, context=None, mask=None, temb=None, **others):
        self.kept = attention_map(attn, x, context, mask)
        return apply_map(attn, self.kept, x, context)

    def again(self, attn, x, context):
        return apply_map(attn, self.kept, x, context)


class OutputReuse(MapReuse):
    """Modifications of one attention's processor:
     - on steps that compute: none, `before` is called; before a run of reusing steps the output is kept
     - on steps that reuse: the kept output is the output
    """

    def size(self, attn, x, context):
        return x.numel() * x.element_size()

    def store(self, attn, *args, **others):
        self.kept = self.before(attn, *args, **others)
        return self.kept

    def again(self, attn, x, context):
        return self.kept


class Recording:
    """Adds to any kind, for a traced run: the age in steps of what was used (0: computed) at every step and layer and,
    where it was used again, its staleness |A_i - A_j| / |A_i| (Frobenius) against what was not computed, and how far it
    has moved for each token (h, w), of the conditional half of the batch; the latter only where all tokens ask."""

    def __call__(self, attn, *args, **others):
        step, trace = self.context.step, self.context.trace
        output = super().__call__(attn, *args, **others)
        trace.add("attention_reuse.age", step, self.name, np.int16(step - sources(self.gamma)[step]))
        if not self.gamma[step]:
            fresh = self.fresh(attn, *args, **others).float()
            change = fresh - self.stale()
            trace.add("attention_reuse.staleness", step, self.name, change.norm() / fresh.norm())
            moved = self.moved(change[-1], fresh[-1])
            if len(moved) == math.prod(self.grid):
                trace.add("attention_reuse.moved", step, self.name, moved.view(self.grid).half())
        return output

    def stale(self):
        return self.kept


class RecordedMapReuse(Recording, MapReuse):
    def fresh(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **others):
        return attention_map(attn, hidden_states, encoder_hidden_states, attention_mask)

    @staticmethod
    def moved(change, fresh):
        """Share of each token's attention that goes elsewhere by now, mean over the heads: (heads, N, M) -> (N,)."""
        return change.abs().sum(-1).mean(0) / 2


class RecordedOutputReuse(Recording, OutputReuse):
    def fresh(self, attn, *args, **others):
        return self.before(attn, *args, **others)

    @staticmethod
    def moved(change, fresh):
        """Relative change of what each token gets: (N, C) -> (N,)."""
        return change.norm(dim=-1) / fresh.norm(dim=-1)


class RecordedCrossReuse(RecordedOutputReuse):
    """Cross-attention whose output is kept in place of its map: the map is kept as well, to tell its staleness."""

    def store(self, attn, *args, **others):
        self.map = self.fresh(attn, *args, **others)
        return super().store(attn, *args, **others)

    def stale(self):
        return self.map

    fresh, moved = RecordedMapReuse.fresh, staticmethod(RecordedMapReuse.moved)


def processor(attn, knobs, traced):
    """The class that reuses for one attention. A cross-attention that adds its input to its output keeps its map after
    all, because its output is not the same at every step."""
    if knobs.keep == "output":
        return RecordedOutputReuse if traced else OutputReuse
    if attn.is_cross_attention and not attn.residual_connection:
        return RecordedCrossReuse if traced else OutputReuse
    return RecordedMapReuse if traced else MapReuse


def attentions(unet, grid, maps):
    """[(name, attention, "self" or "cross")] of the attentions that `maps` asks for."""
    found = [(f"{name}.{part}", attn, "cross" if attn.is_cross_attention else "self")
             for name, block, _ in transformer_blocks(unet, grid)
             for part in ("attn1", "attn2") if (attn := getattr(block, part)) is not None]
    return [(name, attn, part) for name, attn, part in found if maps in (part, "both")]


def touched(unet, grid, knobs):
    """Names of the modules that it can save work in."""
    return [name for name, _, _ in attentions(unet, grid, knobs.maps)]


@contextmanager
def attach(pipe, knobs, context):
    """Modifications:
     - processor of every attention that `knobs.maps` names; none when no step reuses
     - context.frozen: the steps and parts that reuse, for as long as it is attached
    Refused when the schedule does not fit the run or the model, the attention is not diffusers' standard one, or (during
    the first step) when what is to be kept does not fit into memory."""
    gamma = gamma_of(knobs, context.steps, pipe)
    layers = attentions(pipe.unet, context.grid, knobs.maps) if not all(gamma) else []
    for name, attn, _ in layers:
        if type(attn.processor).__name__ not in STANDARD:
            raise Refused(f"{name} uses {type(attn.processor).__name__}, and attention reuse knows only diffusers' "
                          "standard attention: remove what replaced it first.")
    grids = {name: grid for name, _, grid in transformer_blocks(pipe.unet, context.grid)}
    frozen = {(step, part) for _, _, part in layers for step, computed in enumerate(gamma) if not computed}
    ledger = Ledger(context, FILL * models.free_memory(pipe.unet.device))
    with ExitStack() as exits:
        exits.callback(context.frozen.difference_update, frozen - context.frozen)
        context.frozen |= frozen
        for name, attn, _ in layers:
            kind = processor(attn, knobs, context.trace is not None)
            reuse = kind(attn.processor, name, grids[name.rpartition(".")[0]], gamma, context, ledger)
            exits.enter_context(context.at_start(reuse.start))
            exits.enter_context(replaced(attn, processor=reuse))
        yield pipe
