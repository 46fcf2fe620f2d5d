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
#: A paragraph of Ongaro 2014, a section of design.md, an action of Leases.tla, or an invariant.
CITATION = re.compile(r"§\d|figure \d|section \d|Leases\.tla|\bI\d+\b")
ROLES = {"voter": Role.ACTIVE_SECONDARY, "idle": Role.IDLE_SECONDARY, "nobody": Role.NONE}
RELEASE = r"release (?P<by>\w+) life (?P<by_life>\d+) epoch (?P<by_epoch>\d+)"
COMMANDS: list[tuple[re.Pattern[str], Callable[..., Any]]] = []


class MiddleOfTheRange:
    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def command(pattern: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The method is called with the named groups that matched."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        COMMANDS.append((re.compile(pattern), function))
        return function

    return add


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


def shown_message(m: msg.Message) -> str:
    match m:
        case msg.AppendAck():
            return f"ack epoch={m.epoch} lsn={m.lsn} number={m.number & 0xFFFFFFFF}"
        case msg.AppendRejected():
            return f"reject epoch={m.epoch} prev={m.prev_lsn} hint={m.hint_lsn}"
        case msg.VoteRequest():
            release = f" release {m.release.host} life {m.release.incarnation} epoch {m.release.epoch}" if m.release else ""
            return f"vote?{' pre' if m.pre else ''} epoch={m.epoch} log={m.last_lsn}@{m.last_epoch}{release}"
        case msg.Vote():
            return f"vote{' pre' if m.pre else ''} epoch={m.epoch} {'granted' if m.granted else 'refused'}"
        case msg.CampaignNow():
            return f"campaign_now epoch={m.epoch} release {m.release.host} life {m.release.incarnation} epoch {m.release.epoch}"
    raise AssertionError(m)


def shown(effect: ev.Effect, received: list[RecordHead]) -> str:
    match effect:
        case ev.SaveEpoch(_, epoch, voted_for):
            return f"save_epoch epoch={epoch} vote={voted_for or 'nobody'}"
        case ev.TruncateLog(from_lsn):
            return f"truncate_log from={from_lsn}"
        case ev.AppendRecords(_, skip):
            return "append_records " + " ".join(f"{span(head.first_lsn, head.last_lsn)}@{head.epoch}" for head in received[skip:])
        case ev.AppendProposed(_, epoch, first, count):
            return f"append_proposed {span(first, first + count - 1)}@{epoch}"
        case ev.AppendFirst(_, epoch, lsn):
            return f"append_first {lsn}@{epoch}"
        case ev.AppendConfiguration(_, epoch, lsn, new):
            return f"append_configuration {lsn}@{epoch} {shown_configuration(new)}"
        case ev.Send(host, message):
            return f"send {host}: {shown_message(message)}"
        case ev.SendAppend(to, _, prev, prev_epoch, last, committed):
            return f"send_append {to}: after {prev}@{prev_epoch} {span(prev + 1, last) if last > prev else 'nothing'} committed {committed}"
        case ev.SendFromLog(to, _, prev, prev_epoch, committed):
            return f"send_from_log {to}: after {prev}@{prev_epoch} committed {committed}"
        case ev.StartCopy(to):
            return f"start_copy {to}"
        case ev.Commit(lsn):
            return f"commit {lsn}"
        case ev.Serve(epoch):
            return f"serve epoch={epoch}"
        case ev.Follow(host, epoch):
            return f"follow {host} epoch={epoch}"
        case ev.StepDown(_, successor):
            return f"step_down successor={successor or 'nobody'}"
        case ev.SwapAbandoned():
            return "swap_abandoned"
        case ev.ConfigurationRefused(new):
            return f"configuration_refused {shown_configuration(new)}"
        case ev.ConfigurationCommitted(new):
            return f"configuration_committed {shown_configuration(new)}"
        case ev.ReplicaLost(lost, successor):
            return f"replica_lost {lost} successor={successor}"
    raise AssertionError(effect)


# -- the world of one file


class World:
    def __init__(self, setup: list[str], replica_class: type[Replica], liveness_class: type[Liveness]) -> None:
        self.now_ns = 100_000 * MS
        self.received: list[RecordHead] = []
        lines = dict(re.fullmatch(r"(voter|idle|nobody|log starts at|\w+) ?(.*)", line).groups() for line in setup)  # type: ignore[union-attr]
        (role,) = ROLES.keys() & lines.keys()
        members, _, me = lines.pop(role).removeprefix("of ").partition(" as ")
        log = heads(lines.pop("log", ""))
        last_lsn, last_epoch = (log[-1].last_lsn, log[-1].epoch) if log else (0, 0)
        is_serving = "serving" in lines
        is_elected = lines.pop("serving", lines.pop("elected", None)) is not None
        self.life = int(lines.pop("life", 1))
        self.liveness = liveness_class(
            member(me).host, self.life, self.now_ns, Times(), quiet=lines.pop("restarted", None) is not None
        )
        self.replica = replica_class(PARTITION, member(me), self.liveness, MiddleOfTheRange())
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
            self._elect()
        if is_serving:
            self._let_serve()

    def _elect(self) -> None:
        replica = self.replica
        others = [other for other in replica.configuration.members if other != replica.me]
        for other in others:
            self.liveness.met(other.host, 1)
            self.liveness.heard(other.host, self.now_ns)
            self.step(ev.PeerUp(other.host))
        self.now_ns += 1000 * MS
        self.step(ev.TimePassed())
        for other in others:
            self.receive(other, msg.Vote(PARTITION, replica.me.incarnation, other.incarnation, replica.epoch + 1, True, True))
        self.synced()
        for other in others:
            self.receive(other, msg.Vote(PARTITION, replica.me.incarnation, other.incarnation, replica.epoch, False, True))
            self.liveness.heard(other.host, self.now_ns)
        assert replica.role is Role.PRIMARY

    def _let_serve(self) -> None:
        self.synced()
        for other in self.replica.progress:
            self.ack(str(other), None, str(self.replica.last_lsn), None)
        self.step(ev.CommitIdle())
        assert self.replica.serving

    def step(self, event: ev.Event) -> list[str]:
        self.received = list(event.heads) if isinstance(event, ev.AppendReceived) else []
        try:
            return [shown(effect, self.received) for effect in self.replica.step(event, self.now_ns)]
        except InvariantViolation as violation:
            return [f"violation {violation.invariant}"]

    def receive(self, source: Member, message: msg.Message, life: str | None = None) -> list[str]:
        return self.step(ev.MessageReceived(message, source.host, int(life or 1)))

    def do(self, line: str) -> list[str]:
        for pattern, function in COMMANDS:
            if (match := pattern.fullmatch(line)) is not None:
                return function(self, **match.groupdict()) or []
        raise ValueError(f"unknown command: {line}")

    # -- time and other hosts

    @command(r"time \+(?P<ms>\d+)ms")
    def time(self, ms: str) -> list[str]:
        self.now_ns += int(ms) * MS
        return self.step(ev.TimePassed())

    @command(r"later (?P<ms>\d+)ms")
    def later(self, ms: str) -> None:
        self.now_ns += int(ms) * MS

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

    @command(r"peer (?P<what>up|down|paused|resumed) (?P<host>\w+)")
    def peer(self, what: str, host: str) -> list[str]:
        return self.step({"up": ev.PeerUp, "down": ev.PeerDown, "paused": ev.PeerPaused, "resumed": ev.PeerResumed}[what](host))

    # -- messages

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
        sender, replica = member(source), self.replica
        ack = msg.AppendAck(
            PARTITION, replica.me.incarnation, sender.incarnation, int(epoch or replica.epoch), int(lsn), int(number or 0)
        )
        return self.receive(sender, ack)

    @command(r"reject from (?P<source>\S+)( epoch (?P<epoch>\d+))? prev (?P<prev>\d+) hint (?P<hint>\d+)")
    def reject(self, source: str, epoch: str | None, prev: str, hint: str) -> list[str]:
        sender, replica = member(source), self.replica
        epoch_no = int(epoch or replica.epoch)
        return self.receive(
            sender, msg.AppendRejected(PARTITION, replica.me.incarnation, sender.incarnation, epoch_no, int(prev), int(hint))
        )

    @command(rf"vote\?(?P<pre> pre)? from (?P<source>\S+)( to (?P<to>\S+))? epoch (?P<epoch>\d+) log (?P<log>[\d@]+)( {RELEASE})?")
    def vote_request(self, pre: str | None, source: str, to: str | None, epoch: str, log: str, **release: Any) -> list[str]:
        sender, me = member(source), member(to) if to else self.replica.me
        request = msg.VoteRequest(
            PARTITION, me.incarnation, sender.incarnation, int(epoch), *position(log), pre is not None, release_of(**release)
        )
        return self.receive(sender, request)

    @command(r"(?P<what>vote|refusal)(?P<pre> pre)? from (?P<source>\S+) epoch (?P<epoch>\d+)")
    def vote(self, what: str, pre: str | None, source: str, epoch: str) -> list[str]:
        sender, me = member(source), self.replica.me
        return self.receive(
            sender, msg.Vote(PARTITION, me.incarnation, sender.incarnation, int(epoch), pre is not None, what == "vote")
        )

    @command(rf"campaign now from (?P<source>\S+) life (?P<life>\d+) epoch (?P<epoch>\d+) {RELEASE}")
    def campaign_now(self, source: str, life: str, epoch: str, **release: Any) -> list[str]:
        sender, me = member(source), self.replica.me
        given = release_of(**release)
        assert given is not None
        return self.receive(sender, msg.CampaignNow(PARTITION, me.incarnation, sender.incarnation, int(epoch), given), life)

    @command(r"missing (?P<missing>\S+) successor (?P<successor>\d+)")
    def missing(self, missing: str, successor: str) -> list[str]:
        lost, me = member(missing), self.replica.me
        return self.receive(lost, msg.ReplicaMissing(PARTITION, me.incarnation, lost.incarnation, int(successor)))

    # -- what the shell reports and wants

    @command(r"synced( all but (?P<but>\d+))?")
    def synced(self, but: str | None = None) -> list[str]:
        return self.step(ev.Synced(self.replica._write_no - int(but or 0)))

    @command(r"propose (?P<count>\d+)")
    def propose(self, count: str) -> list[str]:
        return self.step(ev.EntriesProposed(int(count)))

    @command(r"no news for a while")
    def commit_idle(self) -> list[str]:
        return self.step(ev.CommitIdle())

    @command(r"swap to (?P<target>\S+)")
    def swap(self, target: str) -> list[str]:
        return self.step(ev.SwapProposed(member(target)))

    @command(r"configure (?P<members>.+)")
    def configure(self, members: str) -> list[str]:
        return self.step(ev.ConfigurationProposed(configuration(self.replica.configuration.version + 1, members)))

    @command(r"log sent to (?P<to>\S+) up to (?P<lsn>\d+)")
    def log_sent(self, to: str, lsn: str) -> list[str]:
        return self.step(ev.LogSent(member(to), int(lsn)))

    @command(r"log starts at (?P<lsn>\d+)")
    def log_start(self, lsn: str) -> list[str]:
        return self.step(ev.LogStartMoved(int(lsn)))

    @command(r"copy to (?P<to>\S+) (ended at (?P<lsn>\d+)|failed)")
    def copy_ended(self, to: str, lsn: str | None) -> list[str]:
        return self.step(ev.CopyEnded(member(to), int(lsn or 0)))

    @command(r"copy installed (?P<at>[\d@]+)")
    def copy_installed(self, at: str) -> list[str]:
        return self.step(ev.CopyInstalled(*position(at), self.replica.configuration, 0))

    @command(r"storage failed (?P<why>\w+)")
    def storage_failed(self, why: str) -> list[str]:
        return self.step(ev.StorageFailed(why))

    # -- looking

    @command(r"state")
    def state(self) -> list[str]:
        r = self.replica
        vote, serving = r.voted_for or "nobody", "yes" if r.serving else "no"
        log = f"{r.last_lsn}@{r.log.last_epoch}"
        return [f"{r.role} epoch={r.epoch} vote={vote} log={log} committed={r.committed_lsn} serving={serving} rejected={r.rejected_total}"]

    @command(r"lease")
    def lease(self) -> list[str]:
        return ["lease" if self.replica.has_lease(self.now_ns) else "no lease"]


def blocks_of(text: str) -> Iterator[tuple[list[str], str]]:
    """(commands, expected) of each step; the first are the set-up lines."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for block in re.split(r"\n\s*\n", lines.strip()):
        commands, bar, expected = block.partition("\n----\n")
        assert bar or block == lines.strip().split("\n\n")[0], f"a step without ----: {block}"
        yield commands.splitlines(), expected.strip()


def run_golden(path: Path, replica_class: type[Replica] = Replica, liveness_class: type[Liveness] = Liveness) -> None:
    (setup, _), *steps = blocks_of(path.read_text())
    assert steps
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
        comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert path.read_text().startswith("#") and CITATION.search(" ".join(comments)), path.stem


def test_unknown_words_are_errors():
    world = World(["voter of a/1 b/1 c/1 as b/1"], Replica, Liveness)
    with pytest.raises(ValueError, match="unknown command"):
        world.do("ack from c/1 lsn 9 loudly")
    with pytest.raises(AssertionError, match="unknown set-up"):
        World(["voter of a/1 b/1 c/1 as b/1", "mood good"], Replica, Liveness)
