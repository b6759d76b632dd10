"""What operators and load balancers see of a running server: /health for its state, /metrics for what it did."""

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
RUNS = Counter("fastviz_runs", "Comparisons, looks inside, searches for reasons and sweeps, by how they ended", ["work", "outcome"], registry=REGISTRY)
ROWS = Counter("fastviz_rows", "Timed runs of a row, and rows that failed; a picture of a sweep is one of them", ["outcome"], registry=REGISTRY)
REFUSALS = Counter("fastviz_refusals", "Requests that were refused, by the field that was wrong, or queue", ["field"], registry=REGISTRY)
STAGES = Counter("fastviz_stage_seconds", "Seconds of timed runs", ["stage"], registry=REGISTRY)
WORKING = Gauge("fastviz_working", "Comparisons, looks inside, searches for reasons and sweeps under way", registry=REGISTRY)
WAITING = Gauge("fastviz_queue", "Calls that wait for a turn", registry=REGISTRY)
FATAL = ("device", "model")  # what is amiss with these leaves nothing that could be computed

faults = {}  # what is amiss now: part -> the sentence that says so
working = set()  # what computes or waits for the pipeline's lock
WORKING.set_function(lambda: len(working))


def note(part, sentence):
    """Remembers what is wrong with a part of the server; "" when it works again."""
    if sentence:
        faults[part] = sentence
    else:
        faults.pop(part, None)


def took(text, denoising, decoder):
    """Counts one timed run with the seconds of its stages."""
    ROWS.labels("timed").inc()
    for stage, seconds in (("text", text), ("denoising", denoising), ("decoder", decoder)):
        STAGES.labels(stage).inc(seconds)


def state(ready, waiting, places):
    """(state, reason, whether the next visitor would be served). ready: everything is loaded; places: of the queue."""
    known = dict(faults)
    if fatal := [known[part] for part in FATAL if part in known]:
        return "degraded", fatal[0], False
    if not ready:
        return "starting", "The model is being loaded.", False
    full = waiting >= places
    reason = "The queue is full." if full else " ".join(known.values())
    return "degraded" if known else "busy" if full or waiting or working else "ready", reason, not full


def routes(queue, places, ready, metrics):
    """The routes of both. queue: has the length of what waits; ready: an Event; metrics: whether /metrics is offered."""
    async def health(request):
        now, reason, served = state(ready.is_set(), len(queue), places)
        return JSONResponse({"state": now, "reason": reason, "waiting": len(queue), "places": places}, 200 if served else 503)

    async def numbers(request):
        return Response(generate_latest(REGISTRY), headers={"content-type": CONTENT_TYPE_LATEST})

    WAITING.set_function(lambda: len(queue))
    return [Route("/health", health)] + ([Route("/metrics", numbers)] if metrics else [])
