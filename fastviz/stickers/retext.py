"""Stage 3a: a fresh text encoder in place of the teacher's, taught to answer as that one does and to tell what stands where.

Without a bound on its weights the text encoder's residual stream had grown five hundred times: its attention saw one token and
nothing else and passed no gradient. "dog" in "a cat left of a dog" did not see "left", and could not learn to. What it said can be
said with small weights as well, and those go on learning. That a word says which object is on which side is taught here too, by
a head that is thrown away: the U-Net's own loss alone hardly does, because "left" moves no picture's mean until it is bound to
an object.
"""

import random

import torch
from torch import nn

from . import parts, teacher, world
from .loop import DEVICE, checkpoint, exact, start_seed, train, write
from .words import OBJECTS

CELLS = 4  # on each side of the picture: what stands in the middle of each is told
DECAY = 0.05  # of weights, times the rate
WHERE = 0.2  # weight of the head's loss


class Taught(nn.Module):
    """A text encoder and the head that reads from its tokens what stands in each cell."""

    def __init__(self):
        super().__init__()
        self.text = parts.text_encoder(parts.tokenizer())
        width = self.text.config.hidden_size
        self.places = nn.Parameter(torch.randn(CELLS * CELLS, width))
        self.reads = nn.MultiheadAttention(width, 4, batch_first=True)
        self.names = nn.Linear(width, len(OBJECTS) + 1)

    def forward(self, tokens):
        """Token ids (B, 24) -> (answers (B, 24, width), logits (B, cells, objects and nothing))."""
        answers = self.text(tokens).last_hidden_state
        read, _ = self.reads(self.places.expand(len(tokens), -1, -1), answers, answers, need_weights=False)
        return answers, self.names(read)


def standing(scene):
    """What stands in the middle of each cell, row by row: the object's index, or their number for nothing."""
    middles = [(i + 0.5) * world.SIZE / CELLS for i in range(CELLS)]
    found = [next((OBJECTS.index(s.name) for s in scene.stickers if s.x <= x < s.x + s.full and s.y <= y < s.y + s.full), len(OBJECTS))
             for y in middles for x in middles]
    return torch.tensor(found)


def captions(seed, size):
    """Endless batches of training captions: tokens (size, 24), and what stands in each cell (size, cells)."""
    rng, tokenizer = random.Random(seed), parts.tokenizer()
    while True:
        scenes = [world.sample(rng, "train", aside=teacher.ASIDE) for _ in range(size)]
        yield teacher.tokens_of(tokenizer, [scene.caption for scene in scenes]), torch.stack([standing(scene) for scene in scenes])


def follows(old):
    """The loss of a Taught whose answers are to be those of `old`."""
    def loss(model, batch):
        tokens, where = (part.to(DEVICE) for part in batch)
        with torch.no_grad(), exact():
            wanted = old(tokens).last_hidden_state
        answers, logits = model(tokens)
        apart = (answers.float() - wanted).square().mean() / wanted.var()
        wrong = nn.functional.cross_entropy(logits.float().flatten(0, 1), where.flatten())
        return apart + WHERE * wrong, {"apart": apart, "where": wrong}
    return loss


def fit(minutes, size, lr, network="small"):
    """Teaches a fresh text encoder for `minutes` and puts it into the teacher's checkpoint, whose optimizers begin anew."""
    name = teacher.stage(network)
    if (saved := checkpoint(name) or teacher.latest(network)) is None:
        raise SystemExit(f"No {network} teacher was trained: there is no text encoder to follow.")
    old = teacher.built(saved.get("average") or saved["weights"]).text.to(DEVICE).eval().requires_grad_(False)
    seed = start_seed(f"{name}-text", 4)
    fresh = Taught()
    fresh.text.final_layer_norm.load_state_dict(old.final_layer_norm.state_dict())
    optimizer = torch.optim.AdamW(fresh.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=DECAY)
    fresh, _ = train(f"{name}-text", fresh, captions(seed, size), follows(old), minutes, lr, optimizers=[optimizer], decay=0.5, report_every=30)
    told = {f"text.{key}": value for key, value in fresh.text.state_dict().items()}
    weights = {kind: (saved.get(kind) or saved["weights"]) | told for kind in ("model", "average")}
    write(name, {key: saved[key] for key in ("step", "hours", "log")} | weights | {"optimizers": ()})
