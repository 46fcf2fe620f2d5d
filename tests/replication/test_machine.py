"""Whatever can happen to a partition, in any order: chosen by Hypothesis, step by step, and by long random walks.

Both have two phases. In the first everything may go wrong and nothing may be wrong: `core_judge` looks at every step. In the second
nothing goes wrong any more, and the partition must serve again in bounded time, with everything that was lost replaced.

A longer run: ``ACTORGRID_TEST_WALKS=2000 pytest tests/replication/test_machine.py --seed=1 --timeout=3600``.
"""

from __future__ import annotations

import os
from collections import Counter

import bugs
import pytest
from core_cluster import Cluster
from core_walk import IMPATIENT, Aftermath, Manager, Walk, WalkSettings, can_lose_disk, commit_idle, is_enough
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from actorgrid.errors import InvariantViolation
from actorgrid.replication.configuration import Member
from actorgrid.replication.liveness import MS
from actorgrid.replication.replica import Replica, Role

HOSTS = st.integers(0, 5)
MESSAGES = st.integers(0, 40)


class Partition(RuleBasedStateMachine):
    """One partition, by hand."""

    hosts = 4
    voters = 3
    replica_class = Replica

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster([], voters=[])

    @initialize(seed=st.integers(0, 1000), impatient=st.booleans(), runs=st.booleans())
    def begin(self, seed: int, impatient: bool, runs: bool) -> None:
        names = "abcdef"[: self.hosts]
        rates = [(1000, 1050, 1100)[(seed + index) % 3] for index in range(self.hosts)]
        self.cluster = Cluster(
            names,
            voters=names[: self.voters],
            seed=seed,
            rates=rates,
            times=IMPATIENT if impatient else None,
            replica_class=self.replica_class,
        )
        self.manager = Manager(self.cluster, self.voters)
        if runs:
            self.cluster.go_on(300 * MS)

    # -- choosing

    def _name(self, index: int) -> str:
        return list(self.cluster.hosts)[index % self.hosts]

    def _message(self, index: int) -> int | None:
        numbers = list(self.cluster.in_flight)
        return numbers[index % len(numbers)] if numbers else None

    def _primary(self, index: int) -> tuple[str, Replica] | None:
        """Somebody who thinks that it is primary."""
        found = [(host.name, replica) for host, replica in self.cluster.replicas() if replica.role is Role.PRIMARY and host.runs]
        return found[index % len(found)] if found else None

    # -- the network

    @rule(index=MESSAGES)
    def deliver(self, index: int) -> None:
        number = self._message(index)
        if number is not None:
            self.cluster.deliver(number)

    @rule(index=MESSAGES)
    def drop(self, index: int) -> None:
        number = self._message(index)
        if number is not None:
            self.cluster.drop(number)

    @rule(index=MESSAGES)
    def duplicate(self, index: int) -> None:
        number = self._message(index)
        if number is not None:
            self.cluster.duplicate(number)

    @rule(source=HOSTS, to=HOSTS)
    def deliver_all(self, source: int, to: int) -> None:
        for number in self.cluster.between(self._name(source), self._name(to)):
            self.cluster.deliver(number)

    @rule(source=HOSTS, to=HOSTS)
    def cut(self, source: int, to: int) -> None:
        if source % self.hosts != to % self.hosts:
            self.cluster.cut(self._name(source), self._name(to))

    @rule(host=HOSTS)
    def isolate(self, host: int) -> None:
        self.cluster.isolate(self._name(host))

    @rule()
    def heal(self) -> None:
        self.cluster.heal()

    # -- time

    @rule(ms=st.sampled_from((1, 10, 60, 250, 700, 1_500, 3_000)), settle=st.booleans(), without=HOSTS)
    def time(self, ms: int, settle: bool, without: int) -> None:
        if settle:
            self.cluster.go_on(ms * MS, [self._name(without)] if without < self.hosts else [])
        else:
            self.cluster.run(ms * MS)

    @rule(without=HOSTS)
    def settle(self, without: int) -> None:
        self.cluster.settle([self._name(without)] if without < self.hosts else [])

    # -- hosts

    @rule(host=HOSTS)
    def sync(self, host: int) -> None:
        if self.cluster.hosts[self._name(host)].runs:
            self.cluster.sync(self._name(host))

    @rule(host=HOSTS, kept=st.integers(0, 6))
    def crash(self, host: int, kept: int) -> None:
        if self.cluster.hosts[self._name(host)].is_alive:
            self.cluster.crash(self._name(host), kept)

    @rule(host=HOSTS)
    def restart(self, host: int) -> None:
        if not self.cluster.hosts[self._name(host)].is_alive:
            self.cluster.start(self._name(host))

    @rule(host=HOSTS)
    def lose_disk(self, host: int) -> None:
        name = self._name(host)
        if not self.cluster.hosts[name].is_alive and can_lose_disk(self.cluster, name):
            self.cluster.lose_disk(name)

    @rule(host=HOSTS)
    def fail_storage(self, host: int) -> None:
        name = self._name(host)
        if self.cluster.hosts[name].runs and 1 in self.cluster.hosts[name].replicas and can_lose_disk(self.cluster, name):
            self.cluster.retire(name, 1)

    @rule(host=HOSTS)
    def pause(self, host: int) -> None:
        if self.cluster.hosts[self._name(host)].runs:
            self.cluster.pause(self._name(host))

    @rule(host=HOSTS)
    def resume(self, host: int) -> None:
        name = self._name(host)
        if self.cluster.hosts[name].is_alive and self.cluster.hosts[name].is_paused:
            self.cluster.resume(name)

    @rule(host=HOSTS, told=st.integers(0, 63))
    def tell_death(self, host: int, told: int) -> None:
        """Only what is true: of a dead host, or of the life before."""
        dead = self.cluster.hosts[self._name(host)]
        life = dead.incarnation if not dead.is_alive else dead.incarnation - 1
        others = [name for index, name in enumerate(self.cluster.hosts) if told >> index & 1 and name != dead.name]
        if life:
            self.cluster.tell_death(dead.name, life, others)

    # -- what is wanted

    @rule(host=HOSTS, count=st.integers(1, 3))
    def propose(self, host: int, count: int) -> None:
        self.cluster.propose(self._name(host), count)

    @rule()
    def tell_commit(self) -> None:
        commit_idle(self.cluster)

    @rule(index=HOSTS, to=HOSTS)
    def swap(self, index: int, to: int) -> None:
        found = self._primary(index)
        if found is not None:
            voters = found[1].configuration.voters
            self.cluster.swap(found[0], voters[to % len(voters)])

    @rule(index=HOSTS, host=HOSTS)
    def add(self, index: int, host: int) -> None:
        found, name = self._primary(index), self._name(host)
        if found is not None and self.cluster.hosts[name].is_alive and 1 not in self.cluster.hosts[name].replicas:
            member = Member(name, self.cluster.hosts[name].disk.next_incarnation(1))
            self.cluster.configure(found[0], found[1].configuration.with_idle(member))

    @rule(index=HOSTS, which=HOSTS)
    def promote(self, index: int, which: int) -> None:
        found = self._primary(index)
        if found is not None and (idle := found[1].configuration.idle):
            self.cluster.configure(found[0], found[1].configuration.promoted(idle[which % len(idle)]))

    @rule(index=HOSTS, which=HOSTS)
    def remove(self, index: int, which: int) -> None:
        found = self._primary(index)
        if found is not None:
            members = found[1].configuration.members
            smaller = found[1].configuration.without(members[which % len(members)])
            if len(smaller.voters) > 1 and is_enough(self.cluster, 1, smaller):
                self.cluster.configure(found[0], smaller)

    @rule()
    def tend(self) -> None:
        """Replace what was reported lost, promote what has caught up."""
        self.manager.tend()

    @rule(arrive=st.booleans())
    def end_copies(self, arrive: bool) -> None:
        for number in list(self.cluster.copies):
            self.cluster.end_copy(number, is_good=arrive)

    @rule(host=HOSTS, kept=st.integers(0, 3))
    def truncate_log(self, host: int, kept: int) -> None:
        found = self.cluster.hosts[self._name(host)]
        if found.runs and 1 in found.replicas:
            self.cluster.truncate_log(found.name, 1, found.replicas[1].committed_lsn - kept + 1)

    @precondition(lambda self: self.cluster.primary() is not None)
    @rule(count=st.integers(1, 5))
    def work(self, count: int) -> None:
        """A while in which all is well, as most are."""
        for _ in range(count):
            for name in list(self.cluster.hosts):
                self.cluster.propose(name)
            self.cluster.go_on(20 * MS)

    # -- the liveness phase

    def teardown(self) -> None:
        if self.cluster.hosts:
            Aftermath(self.cluster, self.manager, self.voters).settle()


class PartitionOfFive(Partition):
    """The same with five voters."""

    hosts = 6
    voters = 5


THOROUGH = settings(
    max_examples=60 if "ACTORGRID_TEST_WALKS" not in os.environ else 5_000,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestPartition = Partition.TestCase
TestPartition.settings = THOROUGH
TestPartitionOfFive = PartitionOfFive.TestCase
TestPartitionOfFive.settings = THOROUGH


@pytest.mark.pure
@pytest.mark.parametrize("bug", [bugs.CommitsWithOneLess, bugs.VotesBeforeTheSync, bugs.AcknowledgesBeforeTheSync, bugs.VotesWhileBound])
def test_the_machine_finds_bugs(bug: type[Replica]) -> None:
    class WithBug(Partition):
        replica_class = bug

    with pytest.raises(InvariantViolation):
        run_state_machine_as_test(WithBug, settings=settings(THOROUGH, max_examples=500, phases=[Phase.generate], database=None))


KINDS = {
    "three": WalkSettings(),
    "three, impatient": WalkSettings(times=IMPATIENT),
    "five": WalkSettings(hosts=6, voters=5),
    "five, impatient": WalkSettings(hosts=5, voters=5, times=IMPATIENT),
    "two partitions": WalkSettings(hosts=4, partitions=2),
}
#: What must have happened in ten walks of one kind, or they show nothing.
FLOORS = {
    "crashes": 30,
    "pauses": 25,
    "late messages": 200,
    "cuts": 60,
    "lost messages": 125,
    "doubled messages": 200,
    "death notices": 125,
    "elections": 9,
    "commits": 150,
    "configurations": 9,
}
#: And in a hundred: what is too seldom for ten walks of any seed to promise.
FLOORS_OF_HUNDRED = {
    "lost writes": 30,
    "lost disks": 20,
    "failed copies": 10,
    "copies begun": 90,
    "replicas built": 60,
    "replicas reported lost": 30,
    "step downs": 70,
    "truncations": 1,
    "copies installed": 1,
    "old primaries without a lease": 1,
}


@pytest.mark.parametrize("kind", KINDS)
def test_random_walks_end_well(kind: str, request: pytest.FixtureRequest) -> None:
    first = request.config.getoption("--seed")
    count = int(os.environ.get("ACTORGRID_TEST_WALKS", "10"))
    happened: Counter[str] = Counter()
    for seed in range(first, first + count):
        walk = Walk(seed, KINDS[kind])
        try:
            walk.stray()
            walk.settle()
        except AssertionError as error:
            error.add_note(f"walk of seed {seed}: repeat it alone with ACTORGRID_TEST_WALKS=1 and --seed={seed}")
            raise
        happened += walk.cluster.judge.counts + walk.cluster.faults
    floors = {what: floor * (count // 10) for what, floor in FLOORS.items()}
    floors |= {what: floor * (count // 100) for what, floor in FLOORS_OF_HUNDRED.items()}
    short = {what: (happened[what], floor) for what, floor in floors.items() if happened[what] < floor}
    assert not short, f"too little happened in {count} walks: {short}"


@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        ("three, impatient", 2_715_000_786),  # leaves office and is told of a commit in one step
        ("two partitions", 967_383_511),  # the last message lost says that a replica is gone, and nothing else ever is to be sent there
        ("five", 1_000_273),  # who is away is to vote, beside a voter that is gone
        ("five", 2_000_065),  # who is known to be gone is to vote
        ("two partitions", 1_000_260),  # what is said before a replica is built is heard after it
    ],
)
def test_walks_that_once_ended_badly_end_well(kind: str, seed: int) -> None:
    walk = Walk(seed, KINDS[kind])
    walk.stray()
    walk.settle()


def test_a_walk_is_a_function_of_its_seed() -> None:
    tails = []
    for _ in range(2):
        walk = Walk(7, WalkSettings(slices=100))
        walk.stray()
        tails.append(walk.cluster.tail(3_000))
    assert tails[0] == tails[1]
