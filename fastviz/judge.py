"""The judge: a small network that says what is in a picture of the sticker world, and where.

It gives the prompt match, features for distances between sets of pictures, and, without an ImageNet backbone, the
layers that LPIPS compares. Its body is SqueezeNet 1.1 (Iandola et al., arXiv 1602.07360), as the lpips package uses it.
"""

import functools
import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models import squeezenet1_1

FOLDER = Path(__file__).parents[1] / "assets/stickers/judge"
SLICES = ((0, 2), (2, 5), (5, 8), (8, 10), (10, 11), (11, 12), (12, 13))  # of SqueezeNet's features, as in lpips
MINIMUM = 1.0  # cells of 16 x 16 px that an object must fill to count as present


class Judge(nn.Module):
    """objects: names; backgrounds: name -> the phrasings that ask for it."""

    def __init__(self, objects, backgrounds):
        super().__init__()
        self.objects, self.backgrounds = tuple(objects), dict(backgrounds)
        self.body = squeezenet1_1(weights=None).features
        self.object_head = nn.Conv2d(512, len(self.objects) + 1, 1)  # the last class is "nothing here"
        self.background_head = nn.Linear(512, len(self.backgrounds))

    def features(self, pictures):
        """The seven feature maps that the lpips package takes from SqueezeNet 1.1, finest first. (B, C, h, w) each."""
        maps, x = [], pictures
        for start, end in SLICES:
            x = self.body[start:end](x)
            maps.append(x)
        return maps

    def forward(self, pictures):
        """Pictures (B, 3, H, W) in [-1, 1] -> object logits per cell (B, 65, h, w), background logits (B, 10).
        256 px give 15 x 15 cells."""
        grid = self.body(pictures)
        return self.object_head(grid), self.background_head(grid.mean((2, 3)))

    @torch.no_grad()
    def read(self, pictures):
        """What is to be seen: `mass` (B, 64), the number of cells that each object fills; `where` (B, 64, 2), the
        centre of those cells as (x, y) in 0..1; `background` (B, 10) probabilities."""
        cells, background = self(pictures)
        share = cells.softmax(1)[:, :-1]
        mass = share.sum((2, 3))
        h, w = share.shape[2:]
        x = (share.sum(2) @ ((torch.arange(w, dtype=share.dtype) + 0.5) / w)) / mass.clamp(min=1e-6)
        y = (share.sum(3) @ ((torch.arange(h, dtype=share.dtype) + 0.5) / h)) / mass.clamp(min=1e-6)
        return {"mass": mass, "where": torch.stack([x, y], 2), "background": background.softmax(1)}

    def asked(self, prompt):
        """The objects, in order, and the background (or None) that a prompt names."""
        text = prompt.lower()
        words = re.findall(r"[a-z]+", text)
        objects = [word for word in dict.fromkeys(words) if word in self.objects]
        places = [name for name, phrases in self.backgrounds.items() if any(phrase in text for phrase in phrases)]
        return objects, (places[0] if places else None)

    def match(self, picture, prompt):
        """How much of what the prompt names is there: (share in 0..1, {name: found}), or None when it names nothing.

        picture: (1, 3, H, W) in [-1, 1]. An object counts when it is among the n largest, n the number of objects
        named, and fills at least one cell; a background when it is the likeliest.
        """
        objects, place = self.asked(prompt)
        if not objects and place is None:
            return None
        seen = self.read(picture)
        largest = seen["mass"][0].topk(max(1, len(objects)))
        present = {self.objects[i] for i, mass in zip(largest.indices.tolist(), largest.values.tolist()) if mass >= MINIMUM}
        found = {name: name in present for name in objects}
        if place is not None:
            found[place] = tuple(self.backgrounds)[int(seen["background"][0].argmax())] == place
        return sum(found.values()) / len(found), found


@functools.cache
def load(folder=FOLDER):
    """The shipped judge, in eval mode. FileNotFoundError when it is not there."""
    told = json.loads((Path(folder) / "config.json").read_text())
    judge = Judge(told["objects"], told["backgrounds"])
    judge.load_state_dict({k: v.float() for k, v in load_file(Path(folder) / "model.safetensors").items()})
    return judge.eval().requires_grad_(False)
