"""The error tree as drawn, and its way over the wire."""

import builtins
import re

import pytest

from actorgrid import errors
from actorgrid.errors import ActorError, ActorGridError, InvariantViolation, from_wire, to_wire

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, ActorGridError)]


def drawn_tree():
    block = errors.__doc__.split("::")[1].split("``InvariantViolation``")[0]
    path, tree = [], []
    for line in block.splitlines():
        if line.strip():
            depth = (len(line) - len(line.lstrip())) // 2
            path = [*path[: depth - 2], line.strip()]
            tree.append((path[-1], path[-2] if len(path) > 1 else None))
    return tree


def test_the_tree_in_the_docstring_is_that_of_the_classes():
    drawn = dict(drawn_tree())
    assert drawn.pop("InvariantViolation") is None
    assert InvariantViolation.__base__ is AssertionError
    assert drawn.pop("ActorGridError") is None
    assert drawn == {cls.__name__: cls.__base__.__name__ for cls in CLASSES if cls is not ActorGridError}


def test_every_class_is_public_and_says_when_it_is_raised():
    for cls in [*CLASSES, InvariantViolation]:
        assert cls.__name__ in errors.__all__
        assert len(cls.__doc__) > 30, cls
        assert not hasattr(builtins, cls.__name__)
    assert sorted(errors.__all__) == errors.__all__


def example(cls):
    details = {
        "remote_type": "bank.Broke", "remote_text": "no", "remote_traceback": "Traceback ...", "actor": "Account/a",
        "chain": ["A/1", "B/2"],
        "retry_after_s": 0.25, "partition": 7, "primary": "host-1@a:1", "current_lsn": 9,
    }  # fmt: skip
    if cls is errors.SettingsError:
        return cls("first problem", "second problem")
    return cls("what happened", **{name: details[name] for name in cls.wire_details})


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_comes_back_over_the_wire_as_it_went(cls):
    error = example(cls)
    name, message, details = to_wire(error)
    again = from_wire(name, message, details)
    assert type(again) is cls
    assert str(again) == str(error)
    assert all(getattr(again, detail) == getattr(error, detail) for detail in cls.wire_details)


@pytest.mark.parametrize("cls", CLASSES)
def test_details_that_a_peer_leaves_out_have_defaults(cls):
    assert type(from_wire(cls.__name__, "m", {})) is cls
    assert type(from_wire(cls.__name__, "m", {"unknown": 1})) is cls


def test_an_unknown_class_comes_back_as_the_root_with_its_name():
    error = from_wire("NewerError", "m", {})
    assert type(error) is ActorGridError
    assert str(error) == "NewerError: m"


def test_a_subclass_of_the_application_travels_as_the_class_it_derives_from():
    class Broke(ActorError):
        pass

    assert to_wire(Broke("m"))[0] == "ActorError"


def test_an_actor_error_shows_the_remote_traceback():
    assert re.search("m\n\nin the host:\nTraceback", str(ActorError("m", remote_traceback="Traceback\n")))


def test_an_invariant_violation_tells_its_story():
    assert str(InvariantViolation("I3", "what", ["one", "two"])) == "I3: what\n  one\n  two"
