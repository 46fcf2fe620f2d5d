"""All scenarios, with a line for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

from bench.bench import Bench
from bench.scenarios import calls, cold, faults, inside, one, resting, scale, stages, tls


@dataclasses.dataclass(frozen=True, slots=True)
class Scenario:
    """One thing to measure."""

    name: str
    what: str
    run: Callable[[Bench], Awaitable[None]]


_ALL = (
    Scenario("write", "a call that changes state: logged, synced on a quorum, exactly once", calls.write),
    Scenario("read", "a call that changes nothing, answered by the primary", calls.read),
    Scenario("one", "one caller: writes and reads in turns with a bare round trip and etcd, and the ratios of the medians", one.one),
    Scenario("mixed", "nine reads to one write", calls.mixed),
    Scenario("map", "reads in batches of 1,000 with client.map; figures are per single call", calls.batch),
    Scenario("chain", "an actor calls an actor that calls a third one; each changes its state", calls.chain),
    Scenario("fan-out", "one actor calls 16 others at the same time; all 17 change their state", calls.fan_out),
    Scenario("large", "actors with 1 MB of state: replace it, change a small field beside it, read it (--payload varies it)", calls.large),
    Scenario("storm", "activation storm: first calls to cold actors after a restart of all hosts", cold.storm),
    Scenario("million", "1,000,000 actors on disk: make them, restart, call cold ones (--actors varies it)", cold.million),
    Scenario("partitions", "writes and idle cost with 64, 512 and 4,096 partitions (--partitions varies it)", scale.partitions),
    Scenario("scale-clients", "reads and writes from 1, 2 and 4 client processes", scale.clients),
    Scenario("scale-hosts", "reads and writes with 1, 3 and 5 hosts", scale.hosts),
    Scenario("drain", "a host is drained and taken back under load", faults.drain),
    Scenario("failover", "a host is killed (SIGKILL) under load, and comes back", faults.failover),
    Scenario("idle", "what a grid costs that nobody calls", resting.idle),
    Scenario(
        "inside", "hosts and client in one process: CPU per call with the least noise, to compare two versions of the code", inside.inside
    ),
    Scenario("stages", "where the time of a call goes, by stage of the hot path: a profile, for shares and not for speed", stages.stages),
    Scenario("tls", "writes and reads with TLS and without, on plain host processes", tls.tls),
    Scenario("memory", "bytes that an idle activation takes (100,000, or --actors)", resting.memory),
)

SCENARIOS: dict[str, Scenario] = {each.name: each for each in _ALL}
