"""The language of the scenarios of several hosts: short commands in, what came of them out, one line each.

A scenario begins with its hosts, ``hosts a b c`` (``hosts a b c d voters=a,b,c``), then come steps: one or more commands, ``----``, what
must come of them; a blank line between steps. Lines that begin with ``#`` say where the rule is written. Members are ``b/1`` (replica) or
``b.1`` (life of a host), ``b`` is the first of both; positions with an epoch are ``7:2``.

It is a `Cluster` by hand: messages and syncs wait until ``settle``, ``deliver a->b`` or ``sync a``; beats go by themselves as time passes.
What is sent and written is not shown, it is seen by what comes of it or with ``in_flight`` and ``logs``. `core_judge` looks at every step.
One replica alone, with every effect, is in ``golden``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from core_cluster import Cluster, Host

from actorgrid.replication import events as ev
from actorgrid.replication import messages as msg
from actorgrid.replication.configuration import Configuration, Member
from actorgrid.replication.liveness import MS
from actorgrid.replication.replica import Replica

#: A partition of one host that is alone must not wait for anything; others have elected after this long.
START_NS = 300 * MS


def steps_of(text: str) -> Iterator[tuple[list[str], str]]:
    """(commands, expected) of each step; the first has the world as its only command, and expects nothing."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for step in re.split(r"\n\s*\n", lines.strip()):
        commands, _, expected = step.partition("----")
        yield commands.strip().splitlines(), expected.strip()


# -- reading


def member(text: str) -> Member:
    name, _, incarnation = text.partition("/")
    return Member(name, int(incarnation or 1))


def life(text: str) -> tuple[str, int]:
    name, _, incarnation = text.partition(".")
    return name, int(incarnation or 1)


def members(text: str) -> tuple[Member, ...]:
    return tuple(member(each) for each in text.split(",") if each)


def duration_ns(text: str) -> int:
    number, unit = re.fullmatch(r"([+-]?[\d.]+)(ms|s)", text).groups()  # type: ignore[union-attr]
    return int(float(number) * (MS if unit == "ms" else 1000 * MS))


def fields_of(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Plain words, and ``key=value``."""
    return [word for word in words if "=" not in word], dict(word.split("=", 1) for word in words if "=" in word)


def configuration_of(plain: list[str], fields: dict[str, str]) -> Configuration:
    version = next(word for word in plain if re.fullmatch(r"v\d+", word))
    return Configuration(int(version[1:]), members(fields["voters"]), members(fields.get("idle", "")))


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
    """Empty for what is sent or written: it is seen by what comes of it."""
    match effect:
        case ev.TruncateLog(from_lsn):
            return f"truncate from {from_lsn}"
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
    return ""


def shown_state(replica: Replica) -> str:
    serving = " serving" if replica.serving else ""
    primary = f" primary={replica.primary.host}" if replica.primary is not None else ""
    return f"{replica.role} epoch={replica.epoch} last={replica.last_lsn} committed={replica.committed_lsn}{primary}{serving}"


class ClusterWorld:
    """Commands are methods: ``truncate_log b 7`` is ``do_truncate_log(["b", "7"])``, and answers lines."""

    def __init__(self, command: str) -> None:
        plain, fields = fields_of(command.split()[1:])
        self.cluster = Cluster(plain, voters=fields["voters"].split(",") if "voters" in fields else (), seed=int(fields.get("seed", 0)))
        self.cluster.on_effect = self._sees
        self._lines: list[str] = []

    def do(self, command: str) -> list[str]:
        """What came of one command."""
        words = command.split()
        method: Callable[[list[str]], list[str]] = getattr(self, f"do_{words[0]}")
        self._lines = []
        answer = method(words[1:])
        return [*self._lines, *answer]

    def _sees(self, host: Host, replica: Replica, effect: ev.Effect) -> None:
        if line := shown(effect):
            self._lines.append(f"{host.name}: {line}")

    # -- the network

    def _matching(self, words: list[str]) -> list[int]:
        """Numbers of the messages ``a->b [kind]``."""
        source, target = words[0].split("->")
        kind = " ".join(words[1:])
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

    def do_started(self, words: list[str]) -> list[str]:
        """The first host is primary of epoch 1 and serves, everybody knows, all is told."""
        self.cluster.go_on(START_NS)
        first = next(iter(self.cluster.hosts))
        assert self.cluster.replica(first).serving
        self.cluster.step(self.cluster.hosts[first], 1, ev.CommitIdle())
        self.cluster.settle()
        self._lines = []
        return []

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
            if self.cluster.end_copy(number, is_good=words[0] == "arrive") != (words[0] == "arrive"):
                self._lines.append("the copy is refused")
        return []

    def do_storage_failed(self, words: list[str]) -> list[str]:
        self.cluster.step(self.cluster.hosts[words[0]], 1, ev.StorageFailed(words[1]))
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

    def do_rejected(self, words: list[str]) -> list[str]:
        return [str(self.cluster.replica(words[0]).rejected_total)]

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
