"""One replica, fed by hand, against the golden files: set-up lines, then steps of commands, ``----``, the effects, a blank line between.

What must come out is written from the specification, never recorded. Members are ``b/1`` (host/replica incarnation), positions ``6-8@2``
(lsn-lsn@epoch), numbers of support count from 1 in each life of who supports. The clock moves only by ``later 300ms`` and by
``time +2600ms``, which also tells the replica; random times are in the middle of their range, so an election timeout is 2250 ms. Numbers
of writes are not shown: ``synced`` reports all of them, ``synced all but 1`` all but the last.

Set-up lines: ``voter|idle|nobody of a/1 b/1 + d/1 as b/1`` (after ``+`` the idle secondaries), ``log 1-5@1 6@2``, ``log starts at 4``,
``epoch 3``, ``voted a/1``, ``applied 5``, ``life 4``, ``restarted`` (a host that may have promised something), ``elected`` (by all; every
peer is up; one epoch more than was set up, its first entry is only written) and ``serving`` (everybody has that entry, and knows).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actorgrid.errors import InvariantViolation
from actorgrid.ids import PartitionId
from actorgrid.replication import events as ev
from actorgrid.replication import messages as msg
from actorgrid.replication.configuration import Configuration, Member
from actorgrid.replication.entry import RecordHead
from actorgrid.replication.liveness import MS, Liveness, Times
from actorgrid.replication.replica import Replica, Role

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.txt"))
PARTITION = PartitionId(12)
MIDDLE_OF_THE_RANGE = SimpleNamespace(uniform=lambda a, b: (a + b) / 2)
#: A paragraph of Ongaro 2014, a section of design.md, an action of Leases.tla, or an invariant.
CITATION = re.compile(r"§\d|figure \d|section \d|Leases\.tla|\bI\d+\b")
ROLES = {"voter": Role.ACTIVE_SECONDARY, "idle": Role.IDLE_SECONDARY, "nobody": Role.NONE}
RELEASE = r"release (?P<by>\w+) life (?P<by_life>\d+) epoch (?P<by_epoch>\d+)"
COMMANDS: dict[str, Callable[..., Any]] = {}


#: What needs nothing but its own words.
EVENTS: dict[str, Callable[..., ev.Event]] = {
    r"propose (\d+)": lambda count: ev.EntriesProposed(int(count)),
    r"no news for a while": ev.CommitIdle,
    r"swap to (\S+)": lambda target: ev.SwapProposed(member(target)),
    r"swap expected to (\S+)": lambda target: ev.SwapExpected(member(target) if target != "nobody" else None),
    r"log sent to (\S+) up to (\d+)": lambda to, lsn: ev.LogSent(member(to), int(lsn)),
    r"copy to (\S+) (?:failed|ended at (\d+))": lambda to, lsn: ev.CopyEnded(member(to), int(lsn or 0)),
    r"storage failed (\w+)": ev.StorageFailed,
    r"peer (up|down|paused|resumed) (\w+)": lambda what, host: getattr(ev, f"Peer{what.title()}")(host),
}


def command(text: str) -> Callable[[Any], Any]:
    """The method is called with the named groups that matched."""
    return lambda function: COMMANDS.setdefault(text, function)


# -- reading


def member(text: str) -> Member:
    host, _, incarnation = text.partition("/")
    return Member(host, int(incarnation))


def position(text: str) -> tuple[int, int]:
    lsn, _, epoch = text.partition("@")
    return int(lsn), int(epoch)


def heads(text: str) -> list[RecordHead]:
    found = []
    for each in text.split():
        span, _, epoch = each.partition("@")
        first, _, last = span.partition("-")
        found.append(RecordHead(int(epoch), int(first), int(last or first)))
    return found


def configuration(version: int, text: str) -> Configuration:
    voters, _, idle = text.partition("+")
    return Configuration(version, tuple(map(member, voters.split())), tuple(map(member, idle.split())))


def release_of(by: str | None, by_life: str, by_epoch: str) -> msg.Release | None:
    return msg.Release(by, int(by_life), int(by_epoch)) if by else None


# -- showing


def span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def shown_configuration(c: Configuration) -> str:
    return " ".join([*map(str, c.voters), *(["+", *map(str, c.idle)] if c.idle else [])])


def shown_release(release: msg.Release | None) -> str:
    return f" release {release.host} life {release.incarnation} epoch {release.epoch}" if release else ""


def shown_message(m: Any) -> str:
    pre = " pre" if getattr(m, "pre", False) else ""
    texts: dict[type, Callable[[], str]] = {
        msg.AppendAck: lambda: f"ack epoch={m.epoch} lsn={m.lsn} number={m.number & 0xFFFFFFFF}",
        msg.AppendRejected: lambda: f"reject epoch={m.epoch} prev={m.prev_lsn} hint={m.hint_lsn}",
        msg.VoteRequest: lambda: f"vote?{pre} epoch={m.epoch} log={m.last_lsn}@{m.last_epoch}{shown_release(m.release)}",
        msg.Vote: lambda: f"vote{pre} epoch={m.epoch} {'granted' if m.granted else 'refused'}",
        msg.CampaignNow: lambda: f"campaign_now epoch={m.epoch}{shown_release(m.release)}",
    }
    return texts[type(m)]()


#: After the name of the effect.
SHOWN: dict[type, Callable[[Any], str]] = {
    ev.SaveEpoch: lambda e: f"epoch={e.epoch} vote={e.voted_for or 'nobody'}",
    ev.TruncateLog: lambda e: f"from={e.from_lsn}",
    ev.AppendProposed: lambda e: f"{span(e.first_lsn, e.first_lsn + e.count - 1)}@{e.epoch}",
    ev.AppendFirst: lambda e: f"{e.lsn}@{e.epoch}",
    ev.AppendConfiguration: lambda e: f"{e.lsn}@{e.epoch} {shown_configuration(e.configuration)}",
    ev.Send: lambda e: f"{e.host}: {shown_message(e.message)}",
    ev.SendAppend: lambda e: (
        f"{e.to}: after {e.prev_lsn}@{e.prev_epoch} "
        f"{span(e.prev_lsn + 1, e.last_lsn) if e.last_lsn > e.prev_lsn else 'nothing'} committed {e.committed_lsn}"
        f"{' may wait' if e.may_wait else ''}"
    ),
    ev.SendFromLog: lambda e: f"{e.to}: after {e.prev_lsn}@{e.prev_epoch} committed {e.committed_lsn}",
    ev.StartCopy: lambda e: f"{e.to}",
    ev.Commit: lambda e: f"{e.lsn}",
    ev.Serve: lambda e: f"epoch={e.epoch}",
    ev.Follow: lambda e: f"{e.host} epoch={e.epoch}",
    ev.StepDown: lambda e: f"successor={e.successor or 'nobody'}",
    ev.SwapAbandoned: lambda e: "",
    **dict.fromkeys((ev.ConfigurationRefused, ev.ConfigurationCommitted), lambda e: shown_configuration(e.configuration)),
    ev.ReplicaLost: lambda e: f"{e.member} successor={e.successor}",
}


def shown(effect: ev.Effect, received: list[RecordHead]) -> str:
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(effect).__name__).lower()
    if isinstance(effect, ev.AppendRecords):
        return " ".join([name, *(f"{span(head.first_lsn, head.last_lsn)}@{head.epoch}" for head in received[effect.skip :])])
    return f"{name} {SHOWN[type(effect)](effect)}".rstrip()


# -- the world of one file


class World:
    def __init__(self, setup: list[str], replica_class: type[Replica], liveness_class: type[Liveness]) -> None:
        self.now_ns = 100_000 * MS
        lines = dict(re.fullmatch(r"(log starts at|\w+) ?(.*)", line).groups() for line in setup)  # type: ignore[union-attr]
        (role,) = ROLES.keys() & lines.keys()
        members, _, me = lines.pop(role).removeprefix("of ").partition(" as ")
        log = heads(lines.pop("log", ""))
        last_lsn, last_epoch = (log[-1].last_lsn, log[-1].epoch) if log else (0, 0)
        is_serving = lines.pop("serving", None) is not None
        is_elected = lines.pop("elected", None) is not None or is_serving
        life = int(lines.pop("life", 1))
        self.liveness = liveness_class(member(me).host, life, self.now_ns, Times(), quiet=lines.pop("restarted", None) is not None)
        self.replica = replica_class(PARTITION, member(me), self.liveness, MIDDLE_OF_THE_RANGE)
        recovered = ev.Recovered(
            int(lines.pop("epoch", last_epoch)),
            lines.pop("voted", ""),
            int(lines.pop("log starts at", 1)),
            last_lsn,
            int(lines.pop("applied", 0)),
            [(head.first_lsn, head.epoch) for head in log],
            [(0, configuration(1, members))],
        )
        assert not lines, f"unknown set-up: {lines}"
        assert self.step(recovered) == []
        assert self.replica.role is ROLES[role]
        if is_elected:
            self._elect([other for other in self.replica.configuration.members if other != self.replica.me])
            if is_serving:
                self._let_serve()

    def _elect(self, others: list[Member]) -> None:
        self.now_ns += 1000 * MS
        for other in others:
            self.liveness.met(other.host, 1)
            self.liveness.heard(other.host, self.now_ns)
            self.step(ev.PeerUp(other.host))
        self.step(ev.TimePassed())
        for other in others:
            self.tell(str(other), msg.Vote, self.replica.epoch + 1, True, True)
        self.synced()
        for other in others:
            self.tell(str(other), msg.Vote, self.replica.epoch, False, True)
        assert self.replica.role is Role.PRIMARY

    def _let_serve(self) -> None:
        self.synced()
        for other in self.replica.progress:
            self.ack(str(other), None, str(self.replica.last_lsn), None)
        self.step(ev.CommitIdle())
        assert self.replica.serving

    def step(self, event: ev.Event) -> list[str]:
        received = list(event.heads) if isinstance(event, ev.AppendReceived) else []
        try:
            return [shown(effect, received) for effect in self.replica.step(event, self.now_ns)]
        except InvariantViolation as violation:
            return [f"violation {violation.invariant}"]

    def do(self, line: str) -> list[str]:
        for text, event in EVENTS.items():
            if (match := re.fullmatch(text, line)) is not None:
                return self.step(event(*match.groups()))
        for text, function in COMMANDS.items():
            if (match := re.fullmatch(text, line)) is not None:
                return function(self, **match.groupdict()) or []
        raise ValueError(f"unknown command: {line}")

    # -- time and other hosts

    @command(r"(?P<what>time \+|later )(?P<ms>\d+)ms")
    def time(self, what: str, ms: str) -> list[str]:
        self.now_ns += int(ms) * MS
        return [] if what == "later " else self.step(ev.TimePassed())

    @command(r"beat from (?P<host>\w+) life (?P<life>\d+)")
    def beat(self, host: str, life: str) -> None:
        self.liveness.beat_received(host, int(life), self.now_ns)

    @command(r"heard (?P<host>\w+)")
    def heard(self, host: str) -> None:
        self.liveness.heard(host, self.now_ns)

    @command(r"support from (?P<host>\w+) number (?P<number>\d+)( for a beat of (?P<ago>\d+)ms ago)?")
    def support(self, host: str, number: str, ago: str | None) -> list[str]:
        is_new = self.liveness.support_answered(host, int(number), self.now_ns - int(ago or 0) * MS, self.now_ns)
        return self.step(ev.SupportChanged(host)) if is_new else []

    @command(r"died (?P<host>\w+) life (?P<life>\d+)")
    def died(self, host: str, life: str) -> list[str]:
        self.liveness.died(host, int(life))
        return self.step(ev.HostDied(host, int(life)))

    # -- messages

    def tell(
        self, source: str, kind: Callable[..., msg.Message], *fields: Any, to: str | None = None, life: str | None = None
    ) -> list[str]:
        """A message for `to`, by default this replica, from that life of the host of `source`."""
        sender, me = member(source), member(to) if to else self.replica.me
        message = kind(PARTITION, me.incarnation, sender.incarnation, *fields)
        return self.step(ev.MessageReceived(message, sender.host, int(life or 1)))

    @command(
        r"append from (?P<source>\S+)( life (?P<life>\d+))?( to (?P<to>\S+))? epoch (?P<epoch>\d+) after (?P<prev>[\d@]+)"
        r"(: (?P<records>[\d@ -]+?))? committed (?P<committed>\d+)"
    )
    def append(
        self, source: str, life: str | None, to: str | None, epoch: str, prev: str, records: str | None, committed: str
    ) -> list[str]:
        sender, me = member(source), member(to) if to else self.replica.me
        message = msg.Append(PARTITION, me.incarnation, sender.incarnation, int(epoch), *position(prev), int(committed), [])
        return self.step(ev.AppendReceived(message, heads(records or ""), sender.host, int(life or 1)))

    @command(r"ack from (?P<source>\S+)( epoch (?P<epoch>\d+))? lsn (?P<lsn>\d+)( number (?P<number>\d+))?")
    def ack(self, source: str, epoch: str | None, lsn: str, number: str | None) -> list[str]:
        return self.tell(source, msg.AppendAck, int(epoch or self.replica.epoch), int(lsn), int(number or 0))

    @command(r"reject from (?P<source>\S+)( epoch (?P<epoch>\d+))? prev (?P<prev>\d+) hint (?P<hint>\d+)")
    def reject(self, source: str, epoch: str | None, prev: str, hint: str) -> list[str]:
        return self.tell(source, msg.AppendRejected, int(epoch or self.replica.epoch), int(prev), int(hint))

    @command(rf"vote\?(?P<pre> pre)? from (?P<source>\S+)( to (?P<to>\S+))? epoch (?P<epoch>\d+) log (?P<log>[\d@]+)( {RELEASE})?")
    def vote_request(self, pre: str | None, source: str, to: str | None, epoch: str, log: str, **release: Any) -> list[str]:
        return self.tell(source, msg.VoteRequest, int(epoch), *position(log), pre is not None, release_of(**release), to=to)

    @command(r"(?P<what>vote|refusal)(?P<pre> pre)? from (?P<source>\S+) epoch (?P<epoch>\d+)")
    def vote(self, what: str, pre: str | None, source: str, epoch: str) -> list[str]:
        return self.tell(source, msg.Vote, int(epoch), pre is not None, what == "vote")

    @command(rf"campaign now from (?P<source>\S+) life (?P<life>\d+) epoch (?P<epoch>\d+) {RELEASE}")
    def campaign_now(self, source: str, life: str, epoch: str, **release: Any) -> list[str]:
        return self.tell(source, msg.CampaignNow, int(epoch), release_of(**release), life=life)

    @command(r"missing (?P<missing>\S+) successor (?P<successor>\d+)")
    def missing(self, missing: str, successor: str) -> list[str]:
        return self.tell(missing, msg.ReplicaMissing, int(successor))

    # -- what the shell reports and wants, beyond `EVENTS`

    @command(r"synced( all but (?P<but>\d+))?")
    def synced(self, but: str | None = None) -> list[str]:
        return self.step(ev.Synced(self.replica._write_no - int(but or 0)))

    @command(r"configure (?P<members>.+)")
    def configure(self, members: str) -> list[str]:
        return self.step(ev.ConfigurationProposed(configuration(self.replica.configuration.version + 1, members)))

    @command(r"copy installed (?P<at>[\d@]+)")
    def copy_installed(self, at: str) -> list[str]:
        return self.step(ev.CopyInstalled(*position(at), self.replica.configuration, 0))

    # -- looking

    @command(r"state")
    def state(self) -> list[str]:
        r = self.replica
        log, serving = f"{r.last_lsn}@{r.log.last_epoch} committed={r.committed_lsn}", "yes" if r.serving else "no"
        return [f"{r.role} epoch={r.epoch} vote={r.voted_for or 'nobody'} log={log} serving={serving} rejected={r.rejected_total}"]

    @command(r"lease")
    def lease(self) -> list[str]:
        return ["lease" if self.replica.has_lease(self.now_ns) else "no lease"]


def blocks_of(text: str) -> Iterator[tuple[list[str], str]]:
    """(commands, expected) of each step; the first are the set-up lines."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).strip()
    for block in re.split(r"\n\s*\n", lines):
        commands, bar, expected = block.partition("\n----\n")
        assert bar or lines.startswith(block), f"a step without ----: {block}"
        yield commands.splitlines(), expected.strip()


def run_golden(path: Path, replica_class: type[Replica] = Replica, liveness_class: type[Liveness] = Liveness) -> None:
    (setup, _), *steps = blocks_of(path.read_text())
    world = World(setup, replica_class, liveness_class)
    for commands, expected in steps:
        got = [line for each in commands for line in world.do(each)]
        assert ("\n".join(got) or "nothing") == expected, f"{path.stem}: {commands}"


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden(path):
    run_golden(path)


def test_every_golden_file_cites_its_rule():
    assert len(GOLDEN) >= 30
    for path in GOLDEN:
        rule, _, _ = path.read_text().partition("\n\n")
        assert path.read_text().count("\n----\n") >= 1, path.stem
        assert CITATION.search(" ".join(line for line in rule.splitlines() if line.startswith("#"))), path.stem


def test_unknown_words_are_errors():
    with pytest.raises(ValueError, match="unknown command"):
        World(["voter of a/1 b/1 c/1 as b/1"], Replica, Liveness).do("ack from c/1 lsn 9 loudly")
    with pytest.raises(AssertionError, match="unknown set-up"):
        World(["voter of a/1 b/1 c/1 as b/1", "mood good"], Replica, Liveness)
