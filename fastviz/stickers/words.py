"""The language of the sticker world: nouns, backgrounds, the caption grammar and what is held out of training."""

import zlib

NOUNS = {  # name -> the emoji that is its picture
    "cat": "🐱", "dog": "🐶", "panda": "🐼", "fox": "🦊", "lion": "🦁", "frog": "🐸", "penguin": "🐧", "owl": "🦉",
    "butterfly": "🦋", "bee": "🐝", "turtle": "🐢", "octopus": "🐙", "fish": "🐠", "whale": "🐳", "elephant": "🐘",
    "unicorn": "🦄", "rabbit": "🐰", "ladybug": "🐞", "snail": "🐌", "chick": "🐥", "monkey": "🐵", "koala": "🐨",
    "dinosaur": "🦖", "pizza": "🍕", "apple": "🍎", "banana": "🍌", "strawberry": "🍓", "watermelon": "🍉",
    "burger": "🍔", "donut": "🍩", "cake": "🎂", "avocado": "🥑", "carrot": "🥕", "cherry": "🍒", "pineapple": "🍍",
    "lemon": "🍋", "mushroom": "🍄", "sunflower": "🌻", "cactus": "🌵", "tulip": "🌷", "tree": "🌳", "house": "🏠",
    "castle": "🏰", "tent": "⛺", "car": "🚗", "bus": "🚌", "train": "🚂", "rocket": "🚀", "sailboat": "⛵",
    "tractor": "🚜", "helicopter": "🚁", "robot": "🤖", "teddy": "🧸", "ball": "⚽", "guitar": "🎸", "gift": "🎁",
    "balloon": "🎈", "umbrella": "☂️", "snowman": "⛄", "sun": "🌞", "moon": "🌛", "star": "⭐", "ghost": "👻",
    "pumpkin": "🎃",
}
OBJECTS = tuple(NOUNS)

BACKGROUNDS = {  # name -> the phrasings that ask for it
    "blue sky": ("in the blue sky", "under a blue sky"),
    "night sky": ("under the night sky", "at night"),
    "beach": ("on the beach", "at the beach"),
    "meadow": ("in a meadow", "on green grass"),
    "snow": ("in the snow", "on a snowy day"),
    "desert": ("in the desert", "on desert sand"),
    "sunset": ("at sunset", "under a sunset sky"),
    "ocean": ("in the ocean", "under the sea"),
    "city street": ("on a city street", "in the city"),
    "forest": ("in the forest", "in the woods"),
}
SCENERY = tuple(BACKGROUNDS)

RELATIONS = {  # of the first object to the second -> phrasings; {1} first reads the relation backwards
    "left": ("{0} to the left of {1}", "{0} left of {1}", "{1} with {0} on its left"),
    "right": ("{0} to the right of {1}", "{0} right of {1}", "{1} with {0} on its right"),
    "above": ("{0} above {1}", "{0} over {1}", "{1} with {0} above it"),
    "below": ("{0} below {1}", "{0} under {1}", "{1} with {0} below it"),
}
ASIDE = {"left": ("{} on the left", "{} to the left"), "right": ("{} on the right", "{} to the right"),  # where one object stands
         "above": ("{} above",), "below": ("{} below",)}
SIZES = ("small", "medium", "big")  # "medium" is never said


def noun_phrase(name, size="medium"):
    """`a cat`, `an owl`, `a big owl`."""
    words = name if size == "medium" else f"{size} {name}"
    return f"an {words}" if words[0] in "aeiou" and not words.startswith("uni") else f"a {words}"


def held_out(names, background):
    """Whether training never shows these objects on this background.

    A fifth of the (object, background) pairs and a third of the (object, object, background) triples are held out;
    evaluation prompts come from them. The choice is a checksum of the words, so it never moves.
    """
    def part(*words):
        return zlib.crc32("|".join(words).encode())

    if any(part(name, background) % 5 == 0 for name in names):
        return True
    return len(names) == 2 and part(*sorted(names), background) % 3 == 0


def caption(rng, names, sizes, relation, background):
    """One phrasing of a scene, drawn with `rng` (random.Random). relation (of one object: the side it is at) and background may
    be None (left unsaid)."""
    phrases = [noun_phrase(*pair) for pair in zip(names, sizes)]
    if not names:
        text = "an empty scene"
    elif len(names) == 1:
        text = rng.choice(ASIDE[relation]).format(*phrases) if relation else phrases[0]
    elif relation is None:
        text = "{} and {}".format(*phrases)
    else:
        text = rng.choices(RELATIONS[relation], weights=(5, 3, 2))[0].format(*phrases)
    if background is None:
        return text
    place = rng.choices(BACKGROUNDS[background], weights=(3, 2))[0]
    return f"{place}, {text}" if rng.random() < 0.15 else f"{text} {place}"


def vocabulary():
    """Every word that a caption can contain, sorted."""
    texts = ["a an and , empty scene", *SIZES, *OBJECTS]
    texts += [phrase for phrases in (*BACKGROUNDS.values(), *RELATIONS.values()) for phrase in phrases]
    words = " ".join(texts).replace("{0}", "").replace("{1}", "").split()
    return sorted(set(words) - {"medium"})
