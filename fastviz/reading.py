"""What a model reads of a prompt: the words that it was never taught, and what does not fit."""

import unicodedata

from . import models
from .verified import BadModel


def words_of(key):
    """The tokenizer of models.MODELS[key]. BadModel when the model is not there."""
    if models.MODELS[key].missing:
        raise BadModel(models.MODELS[key].missing)
    return models.tokenizer(models.MODELS[key].folder)


def unknown_words(key, prompt):
    """The words of `prompt` that the model was never taught: not one token each. Punctuation counts as known.

    Always [] for a model with an open vocabulary, which spells any word.
    """
    if not models.MODELS[key].closed:
        return []
    tokens = words_of(key)
    text, vocabulary = tokens.backend_tokenizer.normalizer.normalize_str(prompt), tokens.get_vocab()
    pieces = tokens.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    words = {text[start:end]: piece for piece, (start, end) in pieces}
    return [word for word, piece in words.items()
            if (f"{piece}</w>" not in vocabulary or (len(word) == 1 and word != "a"))
            and not all(unicodedata.category(c).startswith("P") for c in word)]


def prompt_cut(key, prompt):
    """The end of `prompt` that does not fit into the text encoder and is cut off, or ""."""
    tokens = words_of(key)
    places = tokens.backend_tokenizer.encode(prompt).offsets[1:-1]  # without the start and end tokens
    room = tokens.model_max_length - 2
    return prompt[places[room][0]:] if len(places) > room else ""
