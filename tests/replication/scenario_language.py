"""The language of the golden scenarios: short commands in, effects out, one line each.

A scenario begins with the world it is about, then come steps: one or more commands, ``----``, what must come of them; a blank line between
steps. Lines that begin with ``#`` say where the rule is written. Members are ``b/1`` (replica) or ``b.1`` (life of a host); ``b`` is the
first of both. Positions with an epoch are ``7:2``.

``replica b of a b c`` is one core; the others exist only in what the scenario says of them, and every effect is shown. ``#3`` before an
effect is the number of the write, ``synced 3`` reports it durable. Its election timeout is the shortest, 2 s; the clock begins at 10 s.

``hosts a b c`` is a `Cluster`: messages and syncs wait until ``settle``, ``deliver a->b`` or ``sync a``; beats go by themselves as time
passes. What is sent and written is not shown but by ``in_flight``; every step is judged (`core_judge`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from core_cluster import Cluster, Host

from actorgrid.errors import InvariantViolation
from actorgrid.ids import PartitionId
from actorgrid.replication import events as ev
from actorgrid.replication import messages as msg
from actorgrid.replication.configuration import Configuration, Member
from actorgrid.replication.entry import RecordHead
from actorgrid.replication.liveness import MS, Announcement, Liveness, Times
from actorgrid.replication.replica import Replica

PARTITION = PartitionId(12)
START_NS = 10_000 * MS


def steps_of(text: str) -> Iterator[tuple[list[str], str]]:
    """(commands, expected) of each step; the first has the world as its only command, and expects nothing."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for step in re.split(r"\n\s*\n", lines.strip()):
        commands, _, expected = step.partition("----")
        yield commands.strip().splitlines(), expected.strip()


def world_of(command: str) -> World:
    words = command.split()
    return ClusterWorld(words[1:]) if words[0] == "hosts" else ReplicaWorld(words)


# -- reading


def member(text: str) -> Member:
    name, _, incarnation = text.partition("/")
    return Member(name, int(incarnation or 1))


def life(text: str) -> tuple[str, int]:
    name, _, incarnation = text.partition(".")
    return name, int(incarnation or 1)


def members(text: str) -> tuple[Member, ...]:
    return tuple(member(each) for each in text.split(",") if each)


def position(text: str) -> tuple[int, int]:
    """(lsn, epoch)"""
    lsn, _, epoch = text.partition(":")
    return int(lsn), int(epoch or 0)


def runs(text: str) -> list[tuple[int, int, int]]:
    """(first, last, epoch) of each of ``1-7:2,8:3``"""
    found = []
    for each in text.split(","):
        span, _, epoch = each.partition(":")
        first, _, last = span.partition("-")
        found.append((int(first), int(last or first), int(epoch)))
    return found


def support(text: str) -> int:
    if text == "none":
        return 0
    incarnation, _, count = text.partition(".")
    return (int(incarnation) << 32) + int(count)


def duration_ns(text: str) -> int:
    number, unit = re.fullmatch(r"([+-]?[\d.]+)(ms|s)", text).groups()  # type: ignore[union-attr]
    return int(float(number) * (MS if unit == "ms" else 1000 * MS))


def fields_of(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Plain words, and ``key=value``."""
    return [word for word in words if "=" not in word], dict(word.split("=", 1) for word in words if "=" in word)


def configuration_of(plain: list[str], fields: dict[str, str]) -> Configuration:
    version = next(word for word in plain if re.fullmatch(r"v\d+", word))
    return Configuration(int(version[1:]), members(fields["voters"]), members(fields.get("idle", "")))


def release_of(text: str) -> msg.Release:
    holder, _, epoch = text.partition(":")
    return msg.Release(*life(holder), int(epoch))


# -- showing


def shown_configuration(configuration: Configuration) -> str:
    idle = f" idle={','.join(map(_short, configuration.idle))}" if configuration.idle else ""
    return f"v{configuration.version} voters={','.join(map(_short, configuration.voters))}{idle}"


def _short(each: Member) -> str:
    return each.host if each.incarnation == 1 else str(each)


def _support(number: int) -> str:
    return f"{number >> 32}.{number & 0xFFFFFFFF}" if number else "none"


def _release(release: msg.Release | None) -> str:
    return f" release={release.host}.{release.incarnation}:{release.epoch}" if release is not None else ""


def shown_message(m: msg.Message) -> str:
    match m:
        case msg.AppendAck():
            return f"ack epoch={m.epoch} lsn={m.lsn} support={_support(m.number)}"
        case msg.AppendRejected():
            return f"reject epoch={m.epoch} prev={m.prev_lsn} hint={m.hint_lsn}"
        case msg.VoteRequest():
            return f"vote?{' pre' if m.pre else ''} epoch={m.epoch} log={m.last_lsn}:{m.last_epoch}{_release(m.release)}"
        case msg.Vote():
            return f"vote{' pre' if m.pre else ''} epoch={m.epoch} {'yes' if m.granted else 'no'}"
        case msg.CampaignNow():
            return f"campaign_now epoch={m.epoch}{_release(m.release)}"
        case msg.ReplicaMissing():
            return f"missing /{m.missing} successor=/{m.successor}"
        case msg.Append():
            return f"append epoch={m.epoch} prev={m.prev_lsn}:{m.prev_epoch} committed={m.committed_lsn}"
    raise AssertionError(m)


def shown(effect: ev.Effect) -> str:
    match effect:
        case ev.SaveEpoch(no, epoch, voted_for):
            return f"#{no} save epoch={epoch} vote={voted_for.removesuffix('/1') or 'nobody'}"
        case ev.TruncateLog(from_lsn):
            return f"truncate from {from_lsn}"
        case ev.AppendRecords(no, skip):
            return f"#{no} append what came{f' without {skip}' if skip else ''}"
        case ev.AppendProposed(no, epoch, first_lsn, count):
            return f"#{no} append {first_lsn}-{first_lsn + count - 1}:{epoch}"
        case ev.AppendFirst(no, epoch, lsn):
            return f"#{no} append first {lsn}:{epoch}"
        case ev.AppendConfiguration(no, epoch, lsn, configuration):
            return f"#{no} append configuration {lsn}:{epoch} {shown_configuration(configuration)}"
        case ev.Send(host, message):
            return f"to {host}: {shown_message(message)}"
        case ev.SendAppend(to, epoch, prev_lsn, prev_epoch, last_lsn, committed_lsn):
            what = f" {prev_lsn + 1}-{last_lsn}" if last_lsn > prev_lsn else ""
            return f"to {_short(to)}: append epoch={epoch} prev={prev_lsn}:{prev_epoch}{what} committed={committed_lsn}"
        case ev.SendFromLog(to, epoch, prev_lsn, prev_epoch, committed_lsn):
            return f"to {_short(to)}: append epoch={epoch} prev={prev_lsn}:{prev_epoch} from the log committed={committed_lsn}"
        case ev.StartCopy(to):
            return f"copy to {_short(to)}"
        case ev.Commit(lsn):
            return f"commit {lsn}"
        case ev.Serve(epoch):
            return f"serve epoch={epoch}"
        case ev.Follow(host, epoch):
            return f"follow {host} epoch={epoch}"
        case ev.StepDown(why, successor):
            return f"step down: {why}{f', successor {successor}' if successor else ''}"
        case ev.SwapAbandoned(why):
            return f"swap abandoned: {why}"
        case ev.ConfigurationRefused(configuration, why):
            return f"refused v{configuration.version}: {why}"
        case ev.ConfigurationCommitted(configuration):
            return f"configured {shown_configuration(configuration)}"
        case ev.ReplicaLost(lost, successor):
            return f"lost {lost}, successor {successor}"
    raise AssertionError(effect)


def shown_state(replica: Replica) -> str:
    serving = " serving" if replica.serving else ""
    primary = f" primary={replica.primary.host}" if replica.primary is not None else ""
    return f"{replica.role} epoch={replica.epoch} last={replica.last_lsn} committed={replica.committed_lsn}{primary}{serving}"


class Lowest:
    """Every timeout is the shortest."""

    def uniform(self, a: float, b: float) -> float:
        return a


class World:
    """Commands are methods: ``copy_ended b 7`` is ``do_copy_ended(["b", "7"])``, and answers lines."""

    def do(self, command: str) -> list[str]:
        words = command.split()
        method: Callable[[list[str]], list[str]] = getattr(self, f"do_{words[0]}")
        try:
            return method(words[1:])
        except InvariantViolation as violation:
            return [f"violation {violation.invariant}"]


class ReplicaWorld(World):
    """One core, and what it is told."""

    def __init__(self, words: list[str]) -> None:
        plain, fields = fields_of(words)
        me = member(plain[1])
        hosts = plain[3:]
        self.now_ns = START_NS
        times = Times()
        self.liveness = Liveness(me.host, int(fields.get("life", 1)), self.now_ns, times, quiet="quiet" in hosts)
        self.replica = Replica(PARTITION, me, self.liveness, Lowest())
        voters = tuple(member(host) for host in hosts if host != "quiet")
        self.first = Configuration(1, voters, members(fields.get("idle", "")))
        self.wrote = 0

    def step(self, event: ev.Event) -> list[str]:
        effects = self.replica.step(event, self.now_ns)
        self.wrote = max([self.wrote, *(getattr(effect, "write_no", 0) for effect in effects)])
        return [shown(effect) for effect in effects]

    # -- its life

    def do_recovered(self, words: list[str]) -> list[str]:
        _, fields = fields_of(words)
        log = runs(fields["log"]) if "log" in fields else []
        last_lsn = log[-1][1] if log else 0
        start_lsn = int(fields.get("start", log[0][0] if log else 1))
        epochs = [(first, epoch) for first, _, epoch in log]
        return self.step(
            ev.Recovered(
                int(fields.get("epoch", 0)),
                str(member(fields["voted"])) if "voted" in fields else "",
                start_lsn,
                last_lsn,
                int(fields.get("applied", 0)),
                epochs,
                [(0, self.first)],
            )
        )

    def do_time(self, words: list[str]) -> list[str]:
        """Let time pass; whatever is due happens in its time, and is shown with that if it is anything."""
        end_ns = self.now_ns + duration_ns(words[0])
        lines: list[str] = []
        while self.replica.wake_ns <= end_ns:
            self.now_ns = max(self.now_ns, self.replica.wake_ns)
            lines += self.step(ev.TimePassed())
        self.now_ns = end_ns
        return lines

    def do_synced(self, words: list[str]) -> list[str]:
        return self.step(ev.Synced(int(words[0]) if words else self.wrote))

    def do_propose(self, words: list[str]) -> list[str]:
        return self.step(ev.EntriesProposed(int(words[0])))

    def do_configure(self, words: list[str]) -> list[str]:
        return self.step(ev.ConfigurationProposed(configuration_of(*fields_of(words))))

    def do_swap(self, words: list[str]) -> list[str]:
        return self.step(ev.SwapProposed(member(words[0])))

    def do_commit_idle(self, words: list[str]) -> list[str]:
        return self.step(ev.CommitIdle())

    def do_log_start(self, words: list[str]) -> list[str]:
        return self.step(ev.LogStartMoved(int(words[0])))

    def do_log_sent(self, words: list[str]) -> list[str]:
        return self.step(ev.LogSent(member(words[0]), int(words[1])))

    def do_copy_ended(self, words: list[str]) -> list[str]:
        return self.step(ev.CopyEnded(member(words[0]), int(words[1])))

    def do_copy_installed(self, words: list[str]) -> list[str]:
        plain, fields = fields_of(words)
        lsn, epoch = position(plain[0])
        return self.step(ev.CopyInstalled(lsn, epoch, configuration_of(plain, fields), int(fields["at"])))

    def do_takes_copy(self, words: list[str]) -> list[str]:
        return ["yes" if self.replica.takes_copy(*position(words[0])) else "no"]

    def do_storage_failed(self, words: list[str]) -> list[str]:
        return self.step(ev.StorageFailed(" ".join(words)))

    # -- the others

    def do_up(self, words: list[str]) -> list[str]:
        return [line for host in words for line in self.step(ev.PeerUp(host))]

    def do_down(self, words: list[str]) -> list[str]:
        return [line for host in words for line in self.step(ev.PeerDown(host))]

    def do_paused(self, words: list[str]) -> list[str]:
        return self.step(ev.PeerPaused(words[0]))

    def do_resumed(self, words: list[str]) -> list[str]:
        return self.step(ev.PeerResumed(words[0]))

    def do_beat(self, words: list[str]) -> list[str]:
        """``beat a.1``: it is answered with support."""
        for each in words:
            self.liveness.beat_received(*life(each), self.now_ns)
        return []

    def do_heard(self, words: list[str]) -> list[str]:
        for each in words:
            self.liveness.heard(each, self.now_ns)
        return []

    def do_announces(self, words: list[str]) -> list[str]:
        """``announces a.1 3``: its beats say that it is primary in epoch 3; 0: of nothing."""
        host, incarnation = life(words[0])
        known = self.liveness.announced_version(host)
        self.liveness.announced(host, Announcement(incarnation, known + 1, {PARTITION: int(words[1])} if words[1] != "0" else {}))
        return []

    def do_supports(self, words: list[str]) -> list[str]:
        """``supports b 1.1``: it answers the beat that was just sent, or that was sent at the time given."""
        plain, fields = fields_of(words)
        sent_ns = self.now_ns + duration_ns(fields["sent"]) if "sent" in fields else self.now_ns
        if self.liveness.support_answered(plain[0], support(plain[1]), sent_ns, self.now_ns):
            return self.step(ev.SupportChanged(plain[0]))
        return []

    def do_met(self, words: list[str]) -> list[str]:
        self.liveness.met(*life(words[0]))
        return []

    def do_dead(self, words: list[str]) -> list[str]:
        self.liveness.died(*life(words[0]))
        return self.step(ev.HostDied(*life(words[0])))

    def do_from(self, words: list[str]) -> list[str]:
        """``from a/1.1: ack epoch=2 lsn=7 support=1.1``"""
        sender, incarnation = life(words[0].rstrip(":"))
        who = member(sender)
        plain, fields = fields_of(words[2:])
        to = int(fields.get("to", self.replica.me.incarnation))
        if words[1] == "append":
            return self._append(who, incarnation, to, plain, fields)
        make: Callable[[int, Member, list[str], dict[str, str]], msg.Message] = getattr(self, f"_make_{words[1].rstrip('?')}")
        if words[1] == "vote?":
            make = self._make_vote_request
        return self.step(ev.MessageReceived(make(to, who, plain, fields), who.host, incarnation))

    def _append(self, who: Member, incarnation: int, to: int, plain: list[str], fields: dict[str, str]) -> list[str]:
        prev_lsn, prev_epoch = position(fields["prev"])
        heads = [RecordHead(epoch, first, last) for word in plain for first, last, epoch in runs(word)]
        configurations = []
        if "configuration" in fields:  # configuration=12:v2:a,b,c
            lsn, version, voters = fields["configuration"].split(":")
            configurations = [(int(lsn), Configuration(int(version[1:]), members(voters)))]
        message = msg.Append(
            PARTITION,
            to,
            who.incarnation,
            int(fields["epoch"]),
            prev_lsn,
            prev_epoch,
            int(fields.get("committed", 0)),
            [b""] * len(heads),
            configurations,
        )
        return self.step(ev.AppendReceived(message, heads, who.host, incarnation))

    def _make_ack(self, to: int, who: Member, plain: list[str], fields: dict[str, str]) -> msg.Message:
        number = support(fields.get("support", "none"))
        return msg.AppendAck(PARTITION, to, who.incarnation, int(fields["epoch"]), int(fields["lsn"]), number)

    def _make_reject(self, to: int, who: Member, plain: list[str], fields: dict[str, str]) -> msg.Message:
        return msg.AppendRejected(PARTITION, to, who.incarnation, int(fields["epoch"]), int(fields["prev"]), int(fields["hint"]))

    def _make_vote_request(self, to: int, who: Member, plain: list[str], fields: dict[str, str]) -> msg.Message:
        last_lsn, last_epoch = position(fields["log"])
        release = release_of(fields["release"]) if "release" in fields else None
        return msg.VoteRequest(PARTITION, to, who.incarnation, int(fields["epoch"]), last_lsn, last_epoch, "pre" in plain, release)

    def _make_vote(self, to: int, who: Member, plain: list[str], fields: dict[str, str]) -> msg.Message:
        return msg.Vote(PARTITION, to, who.incarnation, int(fields["epoch"]), "pre" in plain, "yes" in plain)

    def _make_campaign_now(self, to: int, who: Member, plain: list[str], fields: dict[str, str]) -> msg.Message:
        return msg.CampaignNow(PARTITION, to, who.incarnation, int(fields["epoch"]), release_of(fields["release"]))

    def _make_missing(self, to: int, who: Member, plain: list[str], fields: dict[str, str]) -> msg.Message:
        return msg.ReplicaMissing(PARTITION, to, int(plain[0].lstrip("/")), int(fields["successor"].lstrip("/")))

    # -- looking

    def do_state(self, words: list[str]) -> list[str]:
        return [shown_state(self.replica)]

    def do_configuration(self, words: list[str]) -> list[str]:
        return [shown_configuration(self.replica.configuration)]

    def do_lease(self, words: list[str]) -> list[str]:
        return ["yes" if self.replica.has_lease(self.now_ns) else "no"]

    def do_contact(self, words: list[str]) -> list[str]:
        return ["yes" if self.replica.has_contact(self.now_ns) else "no"]

    def do_rejected(self, words: list[str]) -> list[str]:
        return [str(self.replica.rejected_total)]


#: What a cluster scenario does not show: it is seen by what comes of it.
HIDDEN = (
    ev.SaveEpoch | ev.AppendRecords | ev.AppendProposed | ev.AppendFirst | ev.AppendConfiguration | ev.Send | ev.SendAppend | ev.SendFromLog
)


class ClusterWorld(World):
    """Whole hosts."""

    def __init__(self, words: list[str]) -> None:
        plain, fields = fields_of(words)
        self.cluster = Cluster(plain, voters=fields["voters"].split(",") if "voters" in fields else (), seed=int(fields.get("seed", 0)))
        self.cluster.on_effect = self._sees
        self._lines: list[str] = []

    def _sees(self, host: Host, replica: Replica, effect: ev.Effect) -> None:
        if not isinstance(effect, HIDDEN):
            self._lines.append(f"{host.name}: {shown(effect)}")

    def do(self, command: str) -> list[str]:
        self._lines = []
        answer = super().do(command)
        return [*self._lines, *answer]

    # -- the network

    def _matching(self, words: list[str]) -> list[int]:
        """Numbers of the messages ``a->b [kind]``."""
        source, target = words[0].split("->")
        kind = words[1] if len(words) > 1 else ""
        found = []
        for number, envelope in self.cluster.in_flight.items():
            text = self._text(number)
            if (envelope.source, envelope.target) == (source, target) and text.startswith(kind):
                found.append(number)
        assert found, f"nothing like {words} is in flight"
        return found

    def _text(self, number: int) -> str:
        envelope = self.cluster.in_flight[number]
        message: Any = envelope.payload
        records = f" {envelope.records[0].first_lsn}-{envelope.records[-1].last_lsn}" if envelope.records else ""
        return shown_message(message) + records

    def do_in_flight(self, words: list[str]) -> list[str]:
        return [f"{e.source}->{e.target} {self._text(number)}" for number, e in self.cluster.in_flight.items()]

    def do_deliver(self, words: list[str]) -> list[str]:
        for number in self._matching(words):
            self.cluster.deliver(number)
        return []

    def do_drop(self, words: list[str]) -> list[str]:
        for number in self._matching(words):
            self.cluster.drop(number)
        return []

    def do_duplicate(self, words: list[str]) -> list[str]:
        for number in self._matching(words):
            self.cluster.duplicate(number)
        return []

    def do_settle(self, words: list[str]) -> list[str]:
        """Deliver and sync until nothing is left to do, at this moment; ``settle without a`` leaves alone what concerns `a`."""
        self.cluster.settle(words[1:])
        return []

    def do_cut(self, words: list[str]) -> list[str]:
        for word in words:
            self.cluster.cut(*word.split("->"))
        return []

    def do_isolate(self, words: list[str]) -> list[str]:
        self.cluster.isolate(words[0])
        return []

    def do_heal(self, words: list[str]) -> list[str]:
        self.cluster.heal()
        return []

    # -- hosts

    def do_time(self, words: list[str]) -> list[str]:
        """``time +2s``: what is due happens; ``time +2s settle [without a b]``: and everything settles all the while."""
        if "settle" in words:
            self.cluster.go_on(duration_ns(words[0]), words[3:])
        else:
            self.cluster.run(duration_ns(words[0]))
        return []

    def do_sync(self, words: list[str]) -> list[str]:
        self.cluster.sync(words[0])
        return []

    def do_crash(self, words: list[str]) -> list[str]:
        plain, fields = fields_of(words)
        self.cluster.crash(plain[0], int(fields.get("keep", 0)))
        return []

    def do_start(self, words: list[str]) -> list[str]:
        self.cluster.start(words[0])
        self.cluster.connect_all()
        return []

    def do_lose_disk(self, words: list[str]) -> list[str]:
        self.cluster.lose_disk(words[0])
        return []

    def do_pause(self, words: list[str]) -> list[str]:
        self.cluster.pause(words[0])
        return []

    def do_resume(self, words: list[str]) -> list[str]:
        self.cluster.resume(words[0])
        return []

    def do_dead(self, words: list[str]) -> list[str]:
        """``dead a.1 to b c``"""
        self.cluster.tell_death(*life(words[0]), words[2:])
        return []

    def do_truncate_log(self, words: list[str]) -> list[str]:
        self.cluster.truncate_log(words[0], self.cluster.partitions[0], int(words[1]))
        return []

    def do_copies(self, words: list[str]) -> list[str]:
        """``copies arrive`` or ``copies fail``"""
        for number in list(self.cluster.copies):
            self.cluster.end_copy(number, is_good=words[0] == "arrive")
        return []

    def do_drop_replica(self, words: list[str]) -> list[str]:
        self.cluster.drop_replica(words[0], self.cluster.partitions[0])
        return []

    # -- what is wanted

    def do_propose(self, words: list[str]) -> list[str]:
        assert self.cluster.propose(words[0], int(words[1])), f"{words[0]} takes nothing"
        return []

    def do_commit_idle(self, words: list[str]) -> list[str]:
        self.cluster.step(self.cluster.hosts[words[0]], self.cluster.partitions[0], ev.CommitIdle())
        return []

    def do_swap(self, words: list[str]) -> list[str]:
        self.cluster.swap(words[0], member(words[1]))
        return []

    def do_configure(self, words: list[str]) -> list[str]:
        self.cluster.configure(words[0], configuration_of(*fields_of(words[1:])))
        return []

    # -- looking

    def do_states(self, words: list[str]) -> list[str]:
        return [
            f"{name}: {shown_state(host.replicas[1]) if 1 in host.replicas else 'no replica' if host.is_alive else 'dead'}"
            for name, host in self.cluster.hosts.items()
        ]

    def do_leases(self, words: list[str]) -> list[str]:
        holders = [host.name for host, replica in self.cluster.replicas() if replica.has_lease(host.local_ns)]
        return [" ".join(holders) or "nobody"]

    def do_logs(self, words: list[str]) -> list[str]:
        """Runs of epochs, as the process sees them; ``logs durable`` as the disk does."""
        lines = []
        for name, host in self.cluster.hosts.items():
            for disk in (host.disk.durable if words else host.disk.view).values():
                spans = [f"{record.first_lsn}-{record.last_lsn}:{record.epoch}" for record in disk.records]
                lines.append(f"{name}: {' '.join(spans) or 'nothing'}")
        return lines

    def do_configurations(self, words: list[str]) -> list[str]:
        return [f"{host.name}: {shown_configuration(replica.configuration)}" for host, replica in self.cluster.replicas()]
