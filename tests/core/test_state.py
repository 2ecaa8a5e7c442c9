"""States: indexing loses nothing and mixes nothing, files hold all of it, and what is no state is refused."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from ebbtide.core.errors import EbbError
from ebbtide.core.state import State
from ebbtide.core.tree import leaves, merge, tree_map


def made(n: int, units: tuple[int, ...] = (), first: int = 0) -> State:
    """A state whose every leaf tells its element (and unit) apart."""
    rows = torch.arange(first, first + n, dtype=torch.float64)
    x = {
        "a": rows.reshape(-1, 1, 1) + torch.arange(3) / 10 + torch.zeros(1, 4, 1),
        "b": rows[:, None].expand(n, 4).long(),
    }
    state = State.blank(x, {"y": rows.float() * 2, "null": {"y": -rows.float()}}, range(first, first + n), units)
    solve = state.key.double()
    memory = {"solve": {"x0": solve, "h": {"old": solve + 1}}, "guide/0": {"m": rows + 7}}
    return replace(state, x=x, i=torch.arange(state.i.numel()).reshape(state.i.shape), memory=memory)


def same(a: State, b: State) -> None:
    left, right = a.flat(), b.flat()
    assert left.keys() == right.keys()
    for name, leaf in left.items():
        assert leaf.dtype == right[name].dtype, name
        assert torch.equal(leaf, right[name]), name


def test_blank_is_at_the_start_of_time():
    state = State.blank({"a": torch.ones(3, 5, 2)}, {}, [4, 5, 6], (5,))
    assert len(state) == 3
    assert state.t.shape == state.i.shape == state.key.shape == (3, 5)
    assert bool((state.t == 1).all())
    assert not state.x["a"].any()
    assert len(state.key.unique()) == 15
    assert state.group.tolist() == [0, 1, 2]


# ---------------------------------------------------------------- elements


@pytest.mark.parametrize("units", [(), (4,)])
def test_take_reorders_and_puts_back(units):
    state = made(5, units)
    order = torch.tensor([3, 0, 4, 1, 2])
    same(state.take(order).take(order.argsort()), state)
    for k, j in enumerate(order.tolist()):
        same(state.take(order).take(torch.tensor([k])), state.take(torch.tensor([j])))


def test_copies_get_keys_of_their_own_and_single_ones_keep_theirs():
    state = made(3)
    some = state.take(torch.tensor([2, 0, 2, 2]))
    assert some.key[1] == state.key[0]
    assert len({*some.key.tolist(), *state.key.tolist()}) == 6
    assert torch.equal(some.x["a"], state.x["a"][[2, 0, 2, 2]])
    assert torch.equal(some.memory["guide/0"]["m"], state.memory["guide/0"]["m"][[2, 0, 2, 2]])


def test_put_is_the_inverse_of_take():
    state, index = made(5), torch.tensor([4, 1])
    same(state.put(index, state.take(index)), state)
    other = made(2, first=50)
    mixed = state.put(index, other)
    same(mixed.take(index), other)
    rest = torch.tensor([0, 2, 3])
    same(mixed.take(rest), state.take(rest))


def test_put_of_other_memory_leaves_zeros_where_nothing_is_stored():
    state, index = made(3), torch.tensor([1])
    other = replace(made(1, first=9), memory={"steer": {"w": torch.tensor([5.0])}})
    mixed = state.put(index, other)
    assert mixed.memory["steer"]["w"].tolist() == [0, 5, 0]
    assert mixed.memory["guide/0"]["m"].tolist() == [7, 0, 9]


def test_cat_holds_both_and_empty_memory_where_one_has_none():
    a, b = (
        made(2),
        replace(made(3, first=10), memory={"guide/0": {"m": torch.ones(3).double()}, "steer": {"w": torch.ones(3)}}),
    )
    both = a.cat(b)
    assert len(both) == 5
    assert torch.equal(both.x["a"], torch.cat([a.x["a"], b.x["a"]]))
    assert torch.equal(both.cond["null"]["y"], torch.cat([a.cond["null"]["y"], b.cond["null"]["y"]]))
    assert both.memory["steer"]["w"].tolist() == [0, 0, 1, 1, 1]
    assert both.memory["guide/0"]["m"].tolist() == [7, 8, 1, 1, 1]
    assert not both.memory["solve"]["h"]["old"][2:].any()
    same(made(2).cat(made(3, first=2)).take(torch.arange(2)), made(2))


@pytest.mark.parametrize(
    "other",
    [
        replace(made(1), cond={}),
        replace(made(1), cond={**made(1).cond, "z": torch.zeros(1)}),
        replace(made(1), x={"a": torch.zeros(1, 4, 5), "b": made(1).x["b"]}),
        replace(made(1), x=torch.zeros(1)),
    ],
    ids=["no condition", "one condition more", "another shape", "a tensor"],
)
def test_states_of_different_kinds_cannot_be_joined(other):
    with pytest.raises(EbbError, match="cannot be joined"):
        made(2).cat(other)


# ---------------------------------------------------------------- units


def test_units_roll_drop_and_grow():
    state, fresh = made(2, (4,)), made(2, (4,), first=70)
    rolled = state.units([1, 2, 3, -1], fresh)
    for name in ("t", "i", "key"):
        old, new = getattr(state, name), getattr(fresh, name)
        assert torch.equal(getattr(rolled, name), torch.cat([old[:, 1:], new[:, :1]], 1))
    assert torch.equal(rolled.x["a"], torch.cat([state.x["a"][:, 1:], fresh.x["a"][:, :1]], 1))
    for leaf in ("x0", "h.old"):
        old, new = leaves(state.memory["solve"])[leaf], leaves(fresh.memory["solve"])[leaf]
        assert torch.equal(leaves(rolled.memory["solve"])[leaf], torch.cat([old[:, 1:], new[:, :1]], 1))
    assert torch.equal(rolled.memory["guide/0"]["m"], state.memory["guide/0"]["m"])
    assert torch.equal(rolled.cond["y"], state.cond["y"])
    same(state.units([0, 1, 2, 3]), state)
    assert torch.equal(state.units([2, 0]).x["b"], state.x["b"][:, [2, 0]])
    assert torch.equal(state.units([-1, 0, 1, 2, 3], fresh).key[:, 0], fresh.key[:, 0])
    assert state.units([0, 1, 2, 3, -1, -1], fresh).t.shape == (2, 6)


# ---------------------------------------------------------------- trees


def test_tree_map_and_merge_go_by_name():
    assert tree_map(torch.add, {"a": torch.ones(1)}, {"a": torch.ones(1)})["a"].item() == 2
    got = merge(torch.add, {"a": torch.ones(2), "c": {"d": torch.ones(1)}}, {"b": torch.full((2,), 3.0)})
    assert {k: v.tolist() for k, v in leaves(got).items()} == {"a": [1, 1], "b": [3, 3], "c.d": [1]}


def test_flat_and_back():
    state = made(3, (4,))
    same(State.unflat(state.flat()), state)
    assert "cond.null.y" in state.flat()
    bare = State.blank(torch.zeros(2, 3), {}, [0, 1])
    same(State.unflat(bare.flat()), bare)
    assert State.unflat(bare.flat()).cond == {}


def test_names_with_dots_are_refused(tmp_path):
    for state in (replace(made(1), cond={"a.b": torch.zeros(1)}), made(1).remember("x.y", {"m": torch.zeros(1)})):
        with pytest.raises(EbbError, match="holds a dot"):
            state.save(tmp_path / "s")


# ---------------------------------------------------------------- files


def test_save_and_load(tmp_path):
    state = made(3, (4,))
    state = replace(state, x={**state.x, "a": state.x["a"].mT})  # not contiguous
    state.save(tmp_path / "s.safetensors", {"plan": {"solve": "heun"}, "n": [1, 2]})
    loaded, about = State.load(tmp_path / "s.safetensors")
    same(loaded, state)
    assert about == {"plan": {"solve": "heun"}, "n": [1, 2]}
    assert os.listdir(tmp_path) == ["s.safetensors"]


def test_leaves_that_share_their_storage_can_be_saved(tmp_path):
    y = torch.arange(2.0)
    state = replace(made(2), cond={"y": y, "source": y, "null": {"y": y[:1].expand(2)}})
    state.save(tmp_path / "s")
    same(State.load(tmp_path / "s")[0], state)


def foreign(path, metadata):
    safetensors.torch.save_file({"weight": torch.ones(3)}, path, metadata)


def half(path):
    made(3).save(path)
    path.write_bytes(path.read_bytes()[:-100])


def lacking(path):
    """A file of ours that lost a tensor."""
    tensors = made(3).flat()
    del tensors["t"]
    safetensors.torch.save_file(tensors, path, {"ebbtide": "{}"})


WRONG = {
    "missing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "empty": lambda path: path.write_bytes(b""),
    "bytes": lambda path: path.write_bytes(bytes(range(256)) * 8),
    "cut off": half,
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"x": [1, 2]})),
    "a torch file": lambda path: torch.save({"key": torch.ones(2)}, path),
    "weights": lambda path: foreign(path, None),
    "weights with metadata": lambda path: foreign(path, {"format": "pt"}),
    "a header that is no JSON": lambda path: foreign(path, {"ebbtide": "{"}),
    "without its times": lacking,
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_state_is_refused(tmp_path, kind):
    WRONG[kind](tmp_path / "s")
    with pytest.raises(EbbError, match="saved") as caught:
        State.load(tmp_path / "s")
    assert str(tmp_path / "s") in str(caught.value)


@pytest.mark.parametrize("dies", ["while it writes", "before it is named"])
def test_a_save_that_dies_leaves_the_old_file(tmp_path, monkeypatch, dies):
    path = tmp_path / "s"
    made(3).save(path)
    old = path.read_bytes()
    write = safetensors.torch.save_file

    def save_file(tensors, filename, metadata=None):
        write(tensors, filename, metadata)
        with open(filename, "r+b") as file:
            file.truncate(50)
        raise OSError("the disk is full")

    def named(source, target):
        raise OSError("the machine stopped")

    with monkeypatch.context() as patch:
        patch.setattr(
            *((safetensors.torch, "save_file", save_file) if dies == "while it writes" else (os, "replace", named))
        )
        with pytest.raises(OSError, match=r"disk|machine"):
            made(4).save(path)
    assert path.read_bytes() == old
    made(4).save(path)  # and what was left beside it is in nobody's way
    same(State.load(path)[0], made(4))
    assert os.listdir(tmp_path) == ["s"]
