"""Sweeps on a Ray cluster of two machines, which are processes here. Without Ray skipped."""

import os
import threading

import numpy as np
import pytest
from PIL import Image

os.environ["RAY_raylet_start_wait_time_s"] = "240"  # on a busy machine
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
pytest.importorskip("ray", reason="Ray is not installed: pip install ray")

from fastviz.explore import cluster
from fastviz.explore import sweep as sweeping
from fastviz.explore.history import History
from fastviz.explore.plan import read_plan
from fastviz.request import BadRequest

SMALL = dict(steps=2, size=128)


@pytest.fixture(scope="module", autouse=True)
def unlogged():
    """Ray asks whether it runs in a cloud, and a head that is no driver's own tells its makers that its reports are off. Nothing
    of it gets through here, and only it goes unlogged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OFFLINE_LOG")
        yield


@pytest.fixture(scope="module")
def machines():
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 10**8})
    nodes = [made.add_node(num_cpus=1, object_store_memory=10**8) for _ in range(2)]
    made.wait_for_nodes()
    yield made, nodes
    made.shutdown()


def test_two_machines_draw_what_one_draws_and_a_lost_one_costs_nothing(machines, tmp_path):
    """The second half of the sweep runs after one machine was lost with what it was doing."""
    made, nodes = machines
    plan, history, told = read_plan(["a cat"], "0-3", vary=["tome.ratio=0.25,0.5"], **SMALL), History(tmp_path / "history"), []
    lost = threading.Thread(target=made.remove_node, args=(nodes[1],))
    for sweep in cluster.run(plan, history, "me", made.address):
        told.append(sum(cell is not None for cell in sweep.cells.values()))
        if told[-1] == 4 and not lost.ident:
            lost.start()
    lost.join()
    assert told == list(range(13)) and all(cell["error"] is None and cell["seconds"] > 0 for cell in sweep.cells.values())
    assert sweep.environment["threads"] in (1, "1") and "workers on a machine" not in sweep.environment
    assert [each["kind"] for each in history.search("me")] == ["sweep"] and "Timed on" in sweeping.table(sweep)
    other = History(tmp_path / "alone")
    alone = list(sweeping.run(plan, other, "me"))[-1]
    for (v, u), key in sweep.keys.items():
        with Image.open(history.picture_of(key)) as one, Image.open(other.picture_of(alone.keys[v, u])) as same:
            assert np.array_equal(np.asarray(one), np.asarray(same))
        assert sweep.cells[v, u]["lpips"] == alone.cells[v, u]["lpips"]
    again = list(cluster.run(plan, history, "me", made.address))
    assert len(again) == 1 and again[0].cells == sweep.cells  # kept: nothing is run twice


def test_what_cannot_be_is_told(tmp_path):
    plan, history = read_plan(["a cat"], rows="tome", **SMALL), History(tmp_path / "history")
    with pytest.raises(BadRequest, match="give fewer with --cores"):
        next(cluster.run(plan, history, "me", cores=9999))
    with pytest.raises(BadRequest, match="1 or more"):
        next(cluster.run(plan, history, "me", cores=-1))
    with pytest.raises(BadRequest, match="no cluster at 127.0.0.1:1"):
        next(cluster.run(plan, history, "me", "127.0.0.1:1"))


def test_the_majority_decides_whose_times_count():
    fast, slow = ({"device": "a GPU"}, "w"), ({"device": "a CPU"}, "w")
    assert cluster.majority([slow, fast, fast]) == fast and cluster.majority([slow, fast]) == slow
    assert cluster.majority([slow, ({"device": "a CPU"}, "other weights"), slow]) == slow
