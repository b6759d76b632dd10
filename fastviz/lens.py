"""What a traced run records of any model, whatever method is attached: attention maps, and what each step aims at.

trace.CHANNELS tells what is in them. Attention is recorded at all steps or, where there is no room, at some. Where a method
merged or left out tokens, maps are put back onto the grid: a group's share is divided among its members, and what was left
out has none. Where a method reuses a map, what is recorded is the map that it did without.
"""

import math
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import cached_property

import torch
import torch.nn.functional as F

from .methods import method_of
from .methods.attention_reuse import inputs, queries_and_keys
from .patch import replaced, transformer_blocks

SIDE, WORDS = 16, (32, 16)  # places per side that self- and cross-attention are pooled to, at most; the second where maps are many
PLANNED = 0.5  # of the trace's budget for which attention maps are planned: what methods record comes on top
SHARE = 0.9  # of the budget that planned maps may fill together with all else: methods may record more than their half
LEAST = 5, 3  # steps of self- and of cross-attention that a plan holds: first, middle and last, the former with what they used


def shares(attn, x, text=None):
    """The attention map's mean over heads, (N, M), from what one picture's attention reads: (1, N, C) and (1, M, D)."""
    made = [type(layer).forward(layer, y)  # past what methods put around it: a second call is not for their eyes
            for layer, y in zip((attn.to_q, attn.to_k), inputs(attn, x, text))]
    q, k = (each[0].float() for each in queries_and_keys(attn, *made))
    found = q.new_zeros(q.shape[1], k.shape[1])
    for query, key in zip(q, k):  # one head at a time: maps of 4096 tokens are large
        found += torch.softmax(query @ key.T, -1)
    return found / len(q)


def on_grid(rows, size, seen):
    """Rows of (N, ...) for the places of the grid, (h w, ...), 0 where nothing was seen. None where that is not known."""
    if rows.shape[0] == size[0] * size[1] and seen is None:
        return rows
    if seen is None or rows.shape[0] != int(seen.max()) + 1:
        return None
    return rows[seen.clamp(min=0)] * (seen >= 0).view(-1, *[1] * (rows.ndim - 1))


def spread(columns, size, seen):
    """(Q, N) -> (Q, h w): a merged token's share is divided among the places that it stands for."""
    if seen is None:
        return columns
    members = torch.bincount(seen[seen >= 0], minlength=columns.shape[1]).clamp(min=1)
    return on_grid((columns / members).T, size, seen).T


def pooled(maps, side):
    """(K, h, w) -> (K, h', w'), means, both sides at most `side`."""
    return F.adaptive_avg_pool2d(maps, tuple(min(each, side) for each in maps.shape[1:]))


def self_shares(attn, x, size, seen):
    """(hq, wq, hk, wk) uint8, or None where the tokens' places are not known."""
    whole = on_grid(shares(attn, x), size, seen)
    if whole is None:
        return None
    queries = pooled(spread(whole, size, seen).T.unflatten(1, size), SIDE)  # (h w keys, hq, wq)
    both = pooled(queries.flatten(1).T.unflatten(1, size), SIDE)  # (hq wq, hk, wk)
    most = both.amax((1, 2), keepdim=True).clamp(min=1e-12)
    return (255 * (both / most).sqrt()).round().byte().unflatten(0, queries.shape[1:])


def moments(steps, room, frozen=(), part="self"):
    """The steps of a run, `room` of them at most, at which "self" or "cross" attention is recorded: the first, last and middle
    one, then those where it is reused (`frozen`, see Context), each with the step whose map it uses, then others; spread out."""
    reused = {step for step, each in frozen if each == part}
    found = set()
    for step in (0, steps - 1, (steps - 1) // 2, *spread_out(sorted(reused)), *spread_out(sorted(set(range(steps)) - reused))):
        pair = {step, max(j for j in range(step + 1) if j not in reused)}
        if len(found | pair) <= room:
            found |= pair
    return found


def spread_out(numbers):
    """The same in an order of which every beginning is spread over all of them: both ends, then halves, quarters and so on."""
    last, parts = len(numbers) - 1, [2 ** i for i in range(len(numbers).bit_length() + 1)]
    return dict.fromkeys(numbers[last * i // part] for part in parts for i in range(part + 1) if numbers)


def planned(blocks, tokens, steps, budget):
    """(places per side of words' maps, steps at which cross-attention fits, and self-attention) of [(name, block, (h, w))] in a
    trace of `budget` bytes. Each gets half of what is planned, and what the other does without. Where not even LEAST fits, all
    is left to cross-attention, as far as it goes."""
    def places(most, power):
        return sum(math.prod(min(side, most) for side in size) ** power for _, _, size in blocks)

    least_own, least_words = (min(steps, least) for least in LEAST)
    room, own = PLANNED * budget, max(places(SIDE, 2), 1)
    left = room - min(steps * own, max(room / 2, least_own * own))
    for side in WORDS:
        words = max(2 * tokens * places(side, 1), 1)
        if steps * words <= left:
            break
    told = min(steps, int(left // words))
    return (side, told, min(steps, int((room - told * words) // own))) if told >= least_words else (side, steps, 0)


class Watching:
    """One block's attentions. tokens: how many tokens the prompt has, without those of start and end; plan: see planned."""

    def __init__(self, name, size, context, tokens, plan):
        self.name, self.size, self.context, self.tokens = name, size, context, tokens
        self.side, *self.rooms = plan
        self.share = SHARE if self.rooms[-1] else PLANNED  # estimates must still fit where maps do not

    @cached_property
    def moments(self):
        """{part: steps at which it is recorded}. Asked for during the run, when all methods are attached."""
        return {part: moments(self.context.steps, room, self.context.frozen, part) for part, room in zip(("cross", "self"), self.rooms)}

    def part(self, attn, name, forward):
        def watched(hidden_states, encoder_hidden_states=None, *args, **kwargs):
            text = None if encoder_hidden_states is None else encoder_hidden_states[-1:]
            self.record(attn, name, hidden_states[-1:], text)
            return forward(hidden_states, encoder_hidden_states, *args, **kwargs)
        return watched

    def record(self, attn, name, x, text):
        step, seen = self.context.step, self.context.seen.get(self.name)
        if step not in self.moments["self" if text is None else "cross"]:
            return
        whole = x.shape[1] == self.size[0] * self.size[1]  # a method may merge for one attention and not for the other
        seen = None if whole else seen
        if text is not None:
            maps = on_grid(shares(attn, x, text)[:, 1:self.tokens + 1], self.size, seen)
            if maps is not None:
                self.context.trace.add("attention.cross", step, f"{self.name}.{name}",
                                       pooled(maps.T.unflatten(1, self.size), self.side).half(), self.share)
        else:
            found = self_shares(attn, x, self.size, seen)
            if found is not None:
                self.context.trace.add("attention.self", step, f"{self.name}.{name}", found, self.share)


def estimating(unet, forward, guidance, scheduler, context):
    """unet.forward that also records the timestep and the estimate of the finished latents. Only for networks that predict
    epsilon or v."""
    def estimated(sample, timestep, *args, **kwargs):
        context.trace.about["timesteps"].append(int(timestep))
        answer = forward(sample, timestep, *args, **kwargs)
        output, alpha = answer[0].float(), float(scheduler.alphas_cumprod[int(timestep)])
        if len(output) == 2:
            output = output[:1] + guidance * (output[1:] - output[:1])
        x, signal, noise = sample[-1:].float(), alpha ** 0.5, (1 - alpha) ** 0.5
        found = signal * x - noise * output if scheduler.config.prediction_type == "v_prediction" else (x - noise * output) / signal
        context.trace.add("estimate", context.step, "", found[0].half())
        return answer
    return estimated


def about(pipe, request, stack, context):
    """What was run, as plain values: recipe, the prompt's tokens in the order of attention.cross and, filled in by what `attach`
    adds, the timestep of each step and the grid (h, w) of each transformer block of the network that runs."""
    tokens = pipe.tokenizer(request.prompt, truncation=True).input_ids[1:-1]
    return {"model": request.model, "prompt": request.prompt, "seed": request.seed, "size": request.size, "guidance": request.guidance,
            "steps": context.steps, "methods": [{"key": method_of(knobs).KEY, **asdict(knobs)} for knobs in stack],
            "tokens": pipe.tokenizer.convert_ids_to_tokens(tokens), "timesteps": [], "grids": {}}


@contextmanager
def attach(pipe, request, context):
    """Modifications, in a traced run; none otherwise:
     - forward of the U-Net and of every attention: they record, and do what they did
    To be attached before any method, so that it sees the tokens that a method hands to the attention.
    """
    with ExitStack() as exits:
        if context.trace is not None:
            tokens = len(context.trace.about["tokens"])
            blocks = transformer_blocks(pipe.unet, context.grid)
            context.trace.about["grids"] = {name: list(size) for name, _, size in blocks}  # a student's are not its teacher's
            plan = planned(blocks, tokens, context.steps, context.trace.budget)
            for name, block, size in blocks:
                watching = Watching(name, size, context, tokens, plan)
                for part in ("attn1", "attn2"):
                    attn = getattr(block, part)
                    if attn is not None and (part == "attn2" or not attn.is_cross_attention):  # a first attention to the words tells no more
                        exits.enter_context(replaced(attn, forward=watching.part(attn, part, attn.forward)))
            exits.enter_context(replaced(pipe.unet, forward=estimating(
                pipe.unet, pipe.unet.forward, request.guidance, pipe.scheduler, context)))
        yield pipe
