"""replaced(): what was there comes back exactly, whatever ends the block."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastviz.patch import replaced


class Host:
    shared = "of the class"


def test_an_entry_comes_back_as_the_same_object_and_an_absent_one_is_absent_again():
    host, old = Host(), object()
    host.kept = old
    with replaced(host, kept=1, new=2, shared="mine") as inside:
        assert inside is host and (host.kept, host.new, host.shared) == (1, 2, "mine")
    assert host.__dict__ == {"kept": old} and host.kept is old and host.shared == "of the class"


@pytest.mark.parametrize("error", [ValueError(), MemoryError(), KeyboardInterrupt(), SystemExit(), GeneratorExit()], ids=repr)
def test_any_error_passes_and_the_entries_are_back(error):
    host = Host()
    with pytest.raises(type(error)) as told, replaced(host, x=1):
        raise error
    assert told.value is error and host.__dict__ == {}


def test_a_closed_or_forgotten_generator_puts_back_too():
    def inside(host):
        with replaced(host, x=1):
            yield host.x

    closed, forgotten = Host(), Host()
    running = inside(closed)
    assert next(running) == 1
    running.close()
    lost = inside(forgotten)
    next(lost)
    del lost
    assert closed.__dict__ == forgotten.__dict__ == {}


def test_a_module_runs_the_replaced_forward_and_keeps_its_own():
    layer = torch.nn.Linear(2, 2)
    before, x = dict(layer.__dict__), torch.ones(1, 2)
    expected = layer(x)
    with replaced(layer, forward=lambda x: x * 3):
        assert torch.equal(layer(x), x * 3)
    assert layer.__dict__ == before and "forward" not in layer.__dict__ and torch.equal(layer(x), expected)


def test_a_submodule_is_shadowed_not_moved():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model.add_module("head", torch.nn.Linear(2, 2))
    head, other = model.head, torch.nn.Linear(2, 2)
    with replaced(model, head=other):
        assert model.head is other and model._modules["head"] is head
    assert model.head is head and list(model.state_dict()) == ["0.weight", "0.bias", "head.weight", "head.bias"]


@given(st.dictionaries(st.sampled_from("abcd"), st.integers()),
       st.lists(st.dictionaries(st.sampled_from("abcd"), st.integers()), max_size=4))
def test_nested_blocks_leave_nothing(start, edits):
    host = Host()
    host.__dict__.update(start)

    def nest(rest):
        if rest:
            before = dict(host.__dict__)
            with replaced(host, **rest[0]):
                assert host.__dict__ == before | rest[0]
                nest(rest[1:])
            assert host.__dict__ == before
    nest(edits)
    assert host.__dict__ == start
