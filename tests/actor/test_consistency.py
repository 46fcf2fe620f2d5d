"""``@grid.read(consistency=...)``: what it marks, and what it refuses."""

import pytest

from actorgrid import grid
from actorgrid.actor.definition import actor_type_of, method_of
from actorgrid.errors import SettingsError


class Base:
    @grid.read(consistency="any")
    async def inherited(self) -> int:
        return 1


@grid.actor
class Sample(Base):
    async def write(self) -> int:
        return 1

    @grid.read
    async def bare(self) -> int:
        """Documented."""
        return 1

    @grid.read()
    async def called(self) -> int:
        return 1

    @grid.read(consistency="primary")
    async def said(self) -> int:
        return 1

    @grid.read(consistency="any")
    async def anywhere(self, n: int = 0) -> int:
        return n

    @grid.read(consistency="any")
    @grid.blocking
    def blocking(self) -> int:
        return 1

    @grid.reentrant
    @grid.read(consistency="any")
    async def reentrant(self) -> int:
        return 1

    @grid.read
    @grid.read(consistency="any")
    async def said_twice(self) -> int:
        return 1


@pytest.mark.parametrize(("name", "read", "consistency"), [
    ("write", False, "primary"),
    ("bare", True, "primary"),
    ("called", True, "primary"),
    ("said", True, "primary"),
    ("anywhere", True, "any"),
    ("inherited", True, "any"),
    ("blocking", True, "any"),
    ("reentrant", True, "any"),
    ("said_twice", True, "primary"),
])  # fmt: skip
def test_a_read_is_the_primarys_unless_it_says_otherwise(name, read, consistency):
    method = method_of(getattr(Sample, name))[1]
    assert (method.read, method.consistency) == (read, consistency)
    assert method.reentrant == (name == "reentrant")


def test_the_decorator_gives_back_the_method_itself():
    assert Sample.bare.__doc__ == "Documented."
    assert Sample.anywhere.__name__ == "anywhere"


@pytest.mark.parametrize("consistency", ["Any", "", "secondary", "eventual", None, True, 1, ["any"]])
def test_any_other_consistency_is_refused_where_it_is_written(consistency):
    with pytest.raises(SettingsError) as refused:
        grid.read(consistency=consistency)
    assert f"consistency={consistency!r}" in str(refused.value)
    assert "expected 'primary' or 'any'" in str(refused.value)


@pytest.mark.parametrize("mistake", ["any", 7])
def test_a_consistency_without_its_name_is_refused(mistake):
    with pytest.raises(SettingsError, match="expected a method, or consistency='primary' or 'any'"):
        grid.read(mistake)


def test_a_plain_method_cannot_be_a_read_of_any_replica_either():
    class Plain:
        @grid.read(consistency="any")
        def f(self) -> int:
            return 1

    with pytest.raises(SettingsError, match=r"Plain\.f: @grid\.read"):
        actor_type_of(grid.actor(Plain)).resolve()


def test_a_hook_is_no_read_of_any_replica():
    class Hooked:
        async def on_activate(self) -> None: ...

    assert actor_type_of(grid.actor(Hooked)).hooks["on_activate"].consistency == "primary"
