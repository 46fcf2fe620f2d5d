"""What is wrong with an actor class is said at start, all of it, by name."""

import typing

import pytest

from actorgrid import grid
from actorgrid.actor.definition import actor_type_of, is_actor, method_of
from actorgrid.actor.registry import ActorRegistry
from actorgrid.errors import InvalidArgumentError, SettingsError


def problems_of(cls):
    with pytest.raises(SettingsError) as refused:
        actor_type_of(grid.actor(cls)).resolve()
    return refused.value.problems


class Unstorable:
    x: complex = 0j


class Nested:
    x: dict[str, list[complex]] = {}


class NoDefault:
    x: int


class WrongDefault:
    x: int = "five"


class WrongNestedDefault:
    x: dict[str, int] = {"a": "b"}


class HasInit:
    def __init__(self) -> None:
        self.x = 1


class VarArgs:
    async def f(self, *args: int) -> None: ...


class VarKeywords:
    async def f(self, **kwargs: int) -> None: ...


class Generator:
    async def f(self) -> typing.AsyncIterator[int]:
        yield 1


class PlainRead:
    @grid.read
    def f(self) -> int:
        return 1


class PlainReentrant:
    @grid.reentrant
    def f(self) -> int:
        return 1


class PlainHook:
    def on_activate(self) -> None: ...


class HookWithParameter:
    async def on_deactivate(self, why: str) -> None: ...


class UnstorableParameter:
    async def f(self, x: complex) -> None: ...


class UnstorableResult:
    async def f(self) -> complex:
        return 0j


class UnresolvedField:
    x: "Nowhere" = 1  # noqa: F821


class UnresolvedParameter:
    async def f(self, x: "Nowhere") -> None: ...  # noqa: F821


class NoSelf:
    async def f() -> None: ...


class FilledMap:
    x: grid.Map[str, int] = {"a": 1}


class MapOfWrongKeys:
    x: grid.Map[list[int], int]


class MapOfWrongValues:
    x: grid.Map[str, complex]


class Slots:
    __slots__ = ()
    x: int = 0


@pytest.mark.parametrize(("cls", "words"), [
    (Unstorable, ["field x", "complex"]),
    (Nested, ["field x", "complex", "values of the dict"]),
    (NoDefault, ["field x", "default"]),
    (WrongDefault, ["field x", "'five'", "int"]),
    (WrongNestedDefault, ["field x", "default"]),
    (HasInit, ["__init__", "on_activate"]),
    (VarArgs, ["VarArgs.f", "*args"]),
    (VarKeywords, ["VarKeywords.f", "**kwargs"]),
    (Generator, ["Generator.f", "generator"]),
    (PlainRead, ["PlainRead.f", "@grid.read"]),
    (PlainReentrant, ["PlainReentrant.f", "@grid.reentrant"]),
    (PlainHook, ["on_activate", "async def"]),
    (HookWithParameter, ["on_deactivate", "why"]),
    (UnstorableParameter, ["UnstorableParameter.f", "parameter x", "complex"]),
    (UnstorableResult, ["UnstorableResult.f", "result", "complex"]),
    (UnresolvedField, ["UnresolvedField", "Nowhere"]),
    (UnresolvedParameter, ["UnresolvedParameter.f", "Nowhere"]),
    (NoSelf, ["NoSelf.f", "self"]),
    (FilledMap, ["field x", "empty"]),
    (MapOfWrongKeys, ["field x", "key"]),
    (MapOfWrongValues, ["x", "complex"]),
    (Slots, ["__slots__"]),
])  # fmt: skip
def test_a_class_that_is_not_fit_is_refused_by_name(cls, words):
    (problem,) = problems_of(cls)
    assert cls.__name__ in problem
    for word in words:
        assert word in problem, problem


def test_all_problems_of_a_class_are_told_at_once():
    class Wrong:
        a: complex = 0j
        b: int

        def __init__(self) -> None: ...

        async def f(self, *args: int) -> None: ...

    assert len(problems_of(Wrong)) == 4


def test_blocking_is_for_plain_methods_and_says_so():
    with pytest.raises(SettingsError, match=r"f: @grid\.blocking is for plain def"):

        class Wrong:
            @grid.blocking
            async def f(self) -> None: ...


@pytest.mark.parametrize("name", ["1a", "a b", "a\0", "x" * 129])
def test_a_name_that_is_no_identifier_is_refused(name):
    with pytest.raises(SettingsError, match="identifier"):
        grid.actor(name=name)(type("A", (), {}))


def test_only_classes_are_decorated():
    with pytest.raises(SettingsError, match="for classes"):
        grid.actor(lambda: 1)


def test_decorating_starts_nothing_and_looks_at_no_annotation():
    @grid.actor
    class Late:
        x: "Nowhere" = 1  # noqa: F821

    assert is_actor(Late)


def test_a_method_leads_back_to_its_own_type_also_when_it_is_inherited():
    class Base:
        total: int = 0

        async def add(self, n: int) -> int:
            self.total += n
            return self.total

    @grid.actor
    class One(Base):
        pass

    @grid.actor(name="Zwei")
    class Two(One):
        @grid.read
        async def look(self) -> int:
            return self.total

    assert method_of(One.add)[0] is actor_type_of(One)
    assert method_of(Two.add)[0].name == "Zwei"
    assert set(actor_type_of(Two).methods) == {"add", "look"}
    assert actor_type_of(Two).methods["look"].read
    with pytest.raises(InvalidArgumentError, match="not a remote method"):
        method_of(Base.add)

    class Three(Two):
        pass

    assert not is_actor(Three)
    with pytest.raises(InvalidArgumentError, match="decorate"):
        actor_type_of(Three)


def test_private_and_plain_methods_and_hooks_are_not_remote():
    @grid.actor
    class Some:
        async def on_activate(self) -> None: ...
        async def _private(self) -> None: ...
        def helper(self) -> None: ...
        @staticmethod
        async def static() -> None: ...
        @grid.blocking
        def slow(self, n: int) -> int:
            return n

    assert set(actor_type_of(Some).methods) == {"slow"}
    assert actor_type_of(Some).methods["slow"].parameters == ("n",)


# -- the registry


@pytest.fixture
def app(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text("from actorgrid import grid\n" + text)
        return name

    return write


def refused(*modules):
    with pytest.raises(SettingsError) as caught:
        ActorRegistry.load(modules)
    return str(caught.value)


GOOD = "@grid.actor\nclass {0}:\n    n: int = 0\n    async def f(self) -> int:\n        return 1\n"


def test_a_module_that_cannot_serve_is_refused_by_name(app):
    good = app("good_actors", GOOD.format("Good"))
    assert ActorRegistry.load([good]).names == ["Good"]
    assert ActorRegistry.load([good, "good_actors:Good"]).names == ["Good"]
    assert "no_such_module_here" in refused("no_such_module_here")
    assert "good_actors.inside" in refused("good_actors.inside")
    assert "'1 bad'" in refused("1 bad")
    assert "missing_dependency" in refused(app("imports_missing", "import missing_dependency\n"))
    text = refused(app("raises_at_import", "raise KeyError('boom')\n"))
    assert "raises_at_import" in text
    assert "boom" in text
    assert "leaves_at_import" in refused(app("leaves_at_import", "raise SystemExit(2)\n"))
    assert "has_syntax_error" in refused(app("has_syntax_error", "def f(:\n"))
    assert "no_actor_here" in refused(app("no_actor_here", "class A:\n    pass\n"))
    plain = app("plain_class", "class A:\n    pass\n")
    assert "A is not an actor" in refused(f"{plain}:A")
    assert "B does not exist" in refused(f"{plain}:B")
    assert "at least one" in refused()


def test_two_classes_with_one_name_are_refused_with_both_places(app):
    first, second = app("first_actors", GOOD.format("Same")), app("second_actors", GOOD.format("Same"))
    text = refused(first, second)
    for word in ("'Same'", "first_actors.Same", "second_actors.Same", "name="):
        assert word in text


def test_problems_of_all_modules_are_told_at_once(app):
    wrong = app("wrong_field", "@grid.actor\nclass Wrong:\n    x: complex = 0j\n")
    text = refused("nowhere_at_all", wrong)
    assert "nowhere_at_all" in text
    assert "wrong_field.Wrong" in text
    assert "complex" in text
