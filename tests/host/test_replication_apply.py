"""What is committed reaches the state of every replica, whatever becomes of its role meanwhile."""

from __future__ import annotations

from actorgrid.host.commit import GroupCommit


class Writer:
    """One that cannot apply at first: it was just elected and does not serve yet."""

    def __init__(self) -> None:
        self.unapplied = True
        self.may_apply = False
        self.asked = 0

    @property
    def has_unapplied(self) -> bool:
        return self.unapplied

    def write_applied(self, batch: object) -> None:
        self.asked += 1
        if self.may_apply:
            self.unapplied = False


class Store:
    """Takes everything."""

    position = 0

    def batch(self) -> object:
        return object()

    def write(self, batch: object) -> None:
        pass


class Loop:
    """Timers that go off when the test says so."""

    def __init__(self) -> None:
        self.timers: list[object] = []

    def call_later(self, delay_s: float, action: object) -> object:
        self.timers.append(action)
        return self

    def go_off(self) -> None:
        timers, self.timers = self.timers, []
        for action in timers:
            action()  # type: ignore[operator]


def test_who_could_not_apply_is_asked_again_without_a_new_commit() -> None:
    loop, writer = Loop(), Writer()
    commit = GroupCommit(loop, Store(), lambda error: None, lambda batch: None)  # type: ignore[arg-type]
    writer.idle = lambda: None  # type: ignore[attr-defined]
    commit.has_unapplied(writer)  # type: ignore[arg-type]
    loop.go_off()
    assert writer.asked == 1
    writer.may_apply = True
    loop.go_off()
    assert writer.asked == 2
    assert not writer.has_unapplied
    loop.go_off()
    assert writer.asked == 2
