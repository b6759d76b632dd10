"""Many visitors at once, one after another and for long: everybody is served the right picture or refused at once."""

import json
import os
import signal
import threading
import time
from contextlib import ExitStack, contextmanager

import psutil
import pytest
from ledger import LEDGER, quantile
from serving import HTTP, PATIENCE, picture, tiny_page, wait

from fastviz import profile
from fastviz.request import Request

full = pytest.mark.torture
PLACES = profile.load().queue
SEEDS = 5


def asked(seed, methods="full", steps=2, size=128, repeats=1):
    """What the call `compare` takes."""
    return ["a cat", seed, steps, None, size, "stickers", methods, repeats]


@contextmanager
def occupied(server):
    """Somebody else's long comparison holds the pipeline until the block is over."""
    with LEDGER.request() as end:
        _, session = server.join("compare", asked(0, steps=100, size=512, repeats=20))
        heard = server.messages(session)
        while next(heard)["msg"] != "process_generating":
            pass
        try:
            yield
        finally:
            heard.close()
            end.append("cancelled")


def visitors(count, visit):
    """visit(i) of `count` visitors at the same moment -> what they got, in order."""
    got, together = [None] * count, threading.Barrier(count)

    def work(i):
        together.wait(PATIENCE)
        got[i] = visit(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
    return got


def visit(server, seed):
    """One comparison -> ("completed", digest of the picture) or ("refused", seconds until it was)."""
    begun = time.monotonic()
    status, _, last = server.call("compare", asked(seed))
    if status == 503:
        return "refused", time.monotonic() - begun
    rows = last["output"]["data"][0]["rows"]
    return "completed", picture(rows[0])


def kept(results, kind):
    return [value for name, value in results if name == kind]


@pytest.mark.parametrize("count", (10, pytest.param(50, marks=full)))
def test_one_after_another(tiny_server, reference, count):
    for i in range(count):
        assert visit(tiny_server, i % SEEDS) == ("completed", reference(i % SEEDS))


def test_as_many_at_once_as_there_are_places(tiny_server, reference):
    results = visitors(PLACES, lambda i: visit(tiny_server, i % SEEDS))
    assert results == [("completed", reference(i % SEEDS)) for i in range(PLACES)]


@pytest.mark.parametrize("count", (40, pytest.param(100, marks=(full, pytest.mark.alone))))
def test_a_crowd_gets_the_places_and_the_rest_is_refused_at_once(tiny_server, reference, count):
    """While the pipeline is taken nobody is served, so exactly the places are given away, whoever is quickest."""
    before, results = tiny_server.metric('fastviz_refusals_total{field="queue"}'), []

    def one(i):
        result = visit(tiny_server, i % SEEDS)
        results.append((i, *result))

    with occupied(tiny_server):
        crowd = [threading.Thread(target=one, args=(i,)) for i in range(count)]
        for each in crowd:
            each.start()
        wait(lambda: len(results) == count - PLACES)
        assert tiny_server.health() == (503, {"state": "busy", "reason": "The queue is full.", "waiting": PLACES, "places": PLACES})
        assert {kind for _, kind, _ in results} == {"refused"}
    for each in crowd:
        each.join(PATIENCE)
    refused = [seconds for _, kind, seconds in results if kind == "refused"]
    completed = [(digest, reference(i % SEEDS)) for i, kind, digest in results if kind == "completed"]
    assert len(completed) == PLACES and len(refused) == count - PLACES
    assert all(digest == right for digest, right in completed)
    assert tiny_server.metric('fastviz_refusals_total{field="queue"}') - before == len(refused)
    assert count < 100 or quantile(refused, 0.95) < 1.0, sorted(refused)


def arrivals(server, rate, seconds):
    """Visitors that come `rate` times a second whether or not others are served -> what they got."""
    results, threads, begun = [], [], time.monotonic()
    for i in range(max(3, int(rate * seconds))):
        time.sleep(max(0.0, begun + i / rate - time.monotonic()))
        threads.append(threading.Thread(target=lambda i=i: results.append((i, *visit(server, i % SEEDS)))))
        threads[-1].start()
    for thread in threads:
        thread.join(PATIENCE)
    return results, len(threads)


@pytest.mark.parametrize("load", (0.5, 3.0))
@pytest.mark.parametrize("seconds", (6, pytest.param(60, marks=full)))
def test_visitors_who_do_not_wait_for_each_other(tiny_server, reference, load, seconds):
    """Open loop: at half of what the server can do nobody is refused; at three times as much, all who are not are served."""
    begun = time.monotonic()
    for i in range(4):
        visit(tiny_server, i)
    capacity = 4 / (time.monotonic() - begun)
    results, count = arrivals(tiny_server, load * capacity, seconds)
    assert len(results) == count and {kind for _, kind, _ in results} <= {"completed", "refused"}
    assert all(digest == reference(i % SEEDS) for i, kind, digest in results if kind == "completed")
    if load < 1:
        assert not [kind for _, kind, _ in results if kind == "refused"]
    wait(tiny_server.idle)


def test_open_pages_cost_the_active_one_nothing(tiny_server, reference):
    with ExitStack() as tabs:
        for i in range(30):
            alive = tabs.enter_context(HTTP.stream("GET", f"{tiny_server.address}/gradio_api/heartbeat/idle{i}"))
            assert b"ALIVE" in next(alive.iter_bytes())
        assert visit(tiny_server, 1) == ("completed", reference(1))
    assert visit(tiny_server, 2) == ("completed", reference(2))


def test_two_tabs_see_only_what_is_theirs(tiny_server, reference):
    ask = tiny_page().ask
    prompts, seeds = ("a cat", "an owl at night"), (3, 4)

    def tab(i):
        values = ask.values(Request(prompts[i], seed=seeds[i], steps=2, size=128, methods="full", repeats=1))
        told = tiny_server.call("run", values, session=f"tab{i}")[2]["output"]["data"]
        return told[1]["prompt"], told[1]["seed"], picture(told[1]["rows"][0])

    results = visitors(2, tab)
    assert [result[:2] for result in results] == list(zip(prompts, seeds))
    assert results[0][2] == reference(3) and results[1][2] != reference(3)
    other = tiny_server.call("look_inside", [], session="a third one")[1]
    assert other["sentence"] == "Run a comparison first."


def containers(server):
    """{id: (type, length, example)} of everything in the server that holds eight things or more."""
    path = server.folder / "containers.json"
    path.unlink(missing_ok=True)
    server.process.send_signal(signal.SIGUSR1)
    wait(path.exists)
    return json.loads(path.read_text())


def batch(server, count, pages):
    """The same work each time it is called: refusals, comparisons by call, and by page, each with a session of its own."""
    page = tiny_page().ask.values(Request("a cat", steps=1, size=128, methods="full", repeats=1))
    for i in range(count):
        assert server.call("compare", asked(-1))[1]["state"] == "refused"
        assert server.compare(asked(i, steps=1))["state"] == "finished"
        assert not pages or server.call("run", page)[2]["success"]
    wait(server.idle)


def grown(server, count, pages):
    """The containers that two batches of `count` requests each made larger by as much: they grow for ever."""
    told = [containers(server)]
    for _ in range(2):
        batch(server, count, pages)
        told.append(containers(server))
    both = [(each, told[1].get(key), told[2].get(key)) for key, each in told[0].items()]
    return [each for each in both if all(each) and each[1][1] - each[0][1] >= count and each[2][1] - each[1][1] >= count]


def test_two_batches_leave_no_container_larger(tiny_server):
    for _ in range(70):  # more sessions than are remembered
        tiny_server.call("compare", asked(-1))
    batch(tiny_server, 5, pages=False)
    assert not grown(tiny_server, 5, pages=False)


def resident(server):
    return psutil.Process(server.process.pid).memory_info().rss / 2**20


@full
def test_five_hundred_jobs_stay_within_bounds(tiny_server, reference):
    """Comparisons, pages, refusals and visitors who leave; memory after the first hundred is nearly that at the end, and no
    container goes on growing once there were more pages than are remembered."""
    page = tiny_page().ask.values(Request("a cat", seed=1, steps=2, size=128, methods="full", repeats=1))
    early = None
    for i in range(500):
        kind = i % 5
        if kind == 0:
            told = tiny_server.page("run", page, None)["board"]
            assert picture(told["rows"][0]) == reference(1)
        elif kind == 1:
            tiny_server.vanish("compare", asked(i, steps=50))
        elif kind == 2:
            assert tiny_server.call("compare", asked(0, "nonsense"))[1]["state"] == "refused"
        else:
            assert visit(tiny_server, i % SEEDS) == ("completed", reference(i % SEEDS))
        early = early or (i == 150 and resident(tiny_server))
        if not i % 50:
            assert LEDGER.folder(tiny_server.temp) < profile.load().temp_megabytes
    wait(tiny_server.idle)
    assert resident(tiny_server) < early + 100, f"{early:.0f} MB became {resident(tiny_server):.0f} MB"
    assert os.path.isdir(tiny_server.temp)
    assert not grown(tiny_server, 8, pages=True)
