"""What programs ask of the page: the endpoints of its API, which are the tools of its MCP server too (`app.py --mcp`)."""

from contextlib import ExitStack

from ..request import GUIDANCE, PROMPT_LENGTH, REPEATS, STEPS, BadRequest, Request
from .job import able
from .parts import refused, waiting

FIGURES = ("stack", "title", "steps", "repeats", "error", "seconds", "spread", "speedup", "flops", "flops_share", "peak_bytes", "acted", "metrics")
ARGUMENTS = f"""

Parameters:
    prompt: what to draw, {PROMPT_LENGTH} characters at most
    seed: of the starting noise, 0 to {2**32 - 1}
    steps: of the full model, {STEPS[0]} to {STEPS[1]}; empty for the model's own
    guidance: {GUIDANCE[0]} to {GUIDANCE[1]}, how closely to follow the prompt; empty for the model's own
    size: of the pictures in pixels, one of the model's; empty for the model's own
    model: "stickers", or another one that this server offers
    methods: rows, such as "full,tome(ratio=0.3),few_step(steps=12),tome+attention_reuse"; empty for a few of each kind
    repeats: timed runs per row, {REPEATS[0]} to {REPEATS[1]}, of which the median counts
"""


def documented(function):
    """Gradio reads what the arguments mean from the text of the function."""
    function.__doc__ += ARGUMENTS
    return function


class Api:
    def __init__(self, page):
        self.page = page

    @documented
    def compare(self, prompt: str, seed: int = 0, steps: int | None = None, guidance: float | None = None, size: int | None = None,
                model: str = "stickers", methods: str | None = None, repeats: int = 1) -> dict:
        """Runs one prompt and seed through the full diffusion model and through ways to make it fast, and streams the rows, with
        pictures as data URIs. A refusal is {"state": "refused", "field", "sentence"}."""
        page = self.page
        try:
            wanted = page.profile.check(Request(prompt, seed, steps, guidance, size, model, methods, repeats))
            able()
        except BadRequest as refusal:
            yield refused(refusal)
            return
        with ExitStack() as turn:
            try:
                for ahead in page.turn(turn, "api"):  # all programs together are one visitor
                    yield waiting(ahead, page.turns.each)
            except BadRequest as refusal:
                yield refused(refusal)
                return
            job = page.job(wanted)
            try:
                for _ in job.changes():
                    yield job.status() | job.board()
                if page.past:
                    page.past.keep(job)
                yield job.status() | job.board()
            finally:
                job.end()
                page.remember(job)

    @documented
    def measure(self, prompt: str, seed: int = 0, steps: int | None = None, guidance: float | None = None, size: int | None = None,
                model: str = "stickers", methods: str | None = None, repeats: int = 1) -> dict:
        """Tells how fast a diffusion model draws one prompt and seed, and how fast and how far from that the accelerated ways are:
        seconds, speed-up, FLOPs, LPIPS, PSNR, SSIM and prompt match for each row, without pictures."""
        for told in self.compare(prompt, seed, steps, guidance, size, model, methods, repeats):
            yield {name: value for name, value in told.items() if name in ("state", "field", "sentence", "prompt", "seed", "environment")} | {
                "rows": [{name: row[name] for name in FIGURES if name in row} for row in told.get("rows", [])]}
