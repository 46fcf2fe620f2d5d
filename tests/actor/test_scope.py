"""A reentrant turn logs what it changed, leaves the rest to the turn that waits for it, and refuses what both changed."""

import copy

import pytest

from actorgrid import grid
from actorgrid.actor.definition import actor_type_of
from actorgrid.actor.fields import ActorState
from actorgrid.actor.scope import ReentrantScope
from actorgrid.actor.view import MemorySource


@grid.actor
class Both:
    a: int = 0
    b: int = 0
    items: list[int] = []
    others: list[int] = []
    entries: grid.Map[str, int]


class Turns:
    def __init__(self):
        self.source = MemorySource()
        self.lsn = 0
        self.reload()
        self.state.begin(0, read=False)

    def reload(self):
        self.state = ActorState(actor_type_of(Both).shape, self.source)
        self.actor = self.state.instance

    def logged(self, changes, *, took=True):
        self.lsn += 1
        if took:
            self.state.view.logged(self.lsn)
        self.source.apply(changes or [])

    def inner(self, act, *, fails=False, read=False):
        scope = ReentrantScope(self.state, read=read)
        try:
            act(self.actor)
            if fails:
                raise ValueError
            if read:
                return scope.changed_by_read()
            changes = scope.changes()
        except Exception:
            scope.rollback()
            raise
        else:
            self.logged(changes, took=scope.took_entries)
            return changes
        finally:
            scope.close()

    def outer_ends(self, *, fails=False):
        if fails:
            self.state.rollback()
        else:
            self.logged(self.state.changes())
        self.state.end()

    def everything(self):
        values = copy.deepcopy({name: self.state.values[name] for name in ("a", "b", "items", "others")})
        return {**values, "entries": dict(self.actor.entries.items())}


def test_the_inner_turns_changes_are_kept_when_the_outer_one_is_rolled_back():
    turns = Turns()
    turns.actor.a = 1
    turns.actor.items.append(1)
    assert turns.inner(lambda actor: (setattr(actor, "b", 2), actor.others.append(2)))
    assert (turns.actor.a, turns.actor.b, turns.actor.items, turns.actor.others) == (1, 2, [1], [2])
    turns.outer_ends(fails=True)
    kept = {"a": 0, "b": 2, "items": [], "others": [2], "entries": {}}
    assert turns.everything() == kept
    turns.reload()
    assert turns.everything() == kept


def test_both_parts_are_kept_when_both_end_well():
    turns = Turns()
    turns.actor.a = 1
    turns.actor.entries["outer"] = 1
    turns.inner(lambda actor: (setattr(actor, "b", 2), actor.others.append(2)))
    turns.actor.items.append(1)
    turns.actor.entries["later"] = 2
    turns.outer_ends()
    kept = {"a": 1, "b": 2, "items": [1], "others": [2], "entries": {"outer": 1, "later": 2}}
    assert turns.everything() == kept
    turns.reload()
    assert turns.everything() == kept


@pytest.mark.parametrize(("outer", "inner", "name"), [
    (lambda a: setattr(a, "a", 1), lambda a: setattr(a, "a", 2), "a"),
    (lambda a: a.items.append(1), lambda a: a.items.append(2), "items"),
])  # fmt: skip
def test_a_field_that_both_change_is_refused_and_the_outer_turns_part_stays(outer, inner, name):
    turns = Turns()
    outer(turns.actor)
    before = turns.everything()
    with pytest.raises(TypeError, match=f"field {name} was changed by the waiting turn"):
        turns.inner(inner)
    assert turns.everything() == before
    turns.outer_ends()
    turns.reload()
    assert turns.everything() == before


def test_entries_may_be_changed_by_the_inner_turn_when_the_outer_one_has_changed_none():
    turns = Turns()
    turns.inner(lambda actor: actor.entries.__setitem__("inner", 1))
    turns.actor.entries["outer"] = 2
    turns.outer_ends(fails=True)
    assert turns.everything()["entries"] == {"inner": 1}


def test_entries_may_not_be_changed_by_both():
    turns = Turns()
    turns.actor.entries["outer"] = 2
    with pytest.raises(TypeError):
        turns.inner(lambda actor: actor.entries.__setitem__("inner", 1))
    turns.actor.entries["more"] = 3
    turns.outer_ends()
    assert turns.everything()["entries"] == {"outer": 2, "more": 3}


def test_a_raising_inner_turn_leaves_the_outer_one_as_it_was():
    turns = Turns()
    turns.actor.a = 1
    turns.actor.items.append(1)
    before = turns.everything()
    with pytest.raises(ValueError):
        turns.inner(lambda actor: (setattr(actor, "b", 5), actor.items.append(9), actor.entries.__setitem__("x", 1)), fails=True)
    assert turns.everything() == before
    turns.outer_ends()
    turns.reload()
    assert turns.everything() == before


def test_an_inner_read_that_changes_something_is_caught_and_the_outer_turn_may_go_on_writing():
    turns = Turns()
    turns.actor.a = 1
    assert turns.inner(lambda actor: None, read=True) is None
    scope = ReentrantScope(turns.state, read=True)
    turns.actor.others.append(1)
    assert scope.changed_by_read() == "others"
    scope.rollback()
    scope.close()
    turns.actor.entries["x"] = 1
    turns.outer_ends()
    assert turns.everything() == {"a": 1, "b": 0, "items": [], "others": [], "entries": {"x": 1}}


def test_what_the_outer_turn_has_put_into_a_field_and_cannot_be_stored_is_said_at_once():
    turns = Turns()
    turns.actor.a = object()
    with pytest.raises(TypeError, match="field a"):
        ReentrantScope(turns.state, read=False)
