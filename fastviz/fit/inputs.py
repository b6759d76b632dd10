"""What the commands are given, checked: numbers of steps, choices of timesteps, requests."""

from ..methods import olss
from ..request import BadRequest, Request, read_number


def numbers(text, most):
    """`4,5,8` -> [4, 5, 8]. BadRequest unless they are whole numbers from 1 to `most`."""
    found = [read_number(part) for part in text.split(",")]
    if not all(isinstance(n, int) and 1 <= n <= most for n in found):
        raise BadRequest("steps", f"--steps takes whole numbers from 1 to {most}, such as 4,8,10; got {text[:40]!r}.")
    return list(dict.fromkeys(found))


def choices(text):
    """`olss,ays` -> ["olss", "ays"]. BadRequest unless they are known."""
    found = list(dict.fromkeys(part.strip() for part in text.split(",")))
    if not set(found) <= set(olss.SEARCHES):
        raise BadRequest("search", f"--search takes {', '.join(olss.SEARCHES)}, separated by commas; got {text[:40]!r}.")
    return found


def requests(args, texts, seed):
    """A checked Request for each text; the first one starts from the noise of `seed`, each of the next from one more."""
    return [Request(text, seed=seed + i, guidance=args.guidance, size=args.size, model=args.model, methods="full")
            for i, text in enumerate(texts)]
