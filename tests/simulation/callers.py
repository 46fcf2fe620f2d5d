"""Callers of a simulated grid: they count, move money and read, and write down what they were told."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from typing import Any

from actorgrid.client.client import Client
from actorgrid.errors import ActorGridError, DeadlineExceededError, OutcomeUnknownError, ReentrancyError, RequestError
from actorgrid.testing.simulation import SimClient, SimCluster
from tests.faults.apps.fault_ledger import Ledger
from tests.faults.checkers import ReadBack
from tests.faults.history import Record
from tests.faults.load_client import outcome_of
from tests.simulation.plan import Plan

COLD_ACTORS = 12
HOT_ACTORS = 2
#: A caller goes on at once with this probability; else it rests.
CALLS_ON = 0.85
REST_LOOK_S = 1.0
#: Hot actors change after so long: the search for a linear order is for short histories.
HOT_S = 4.0
READ_BACK_S = 60.0
#: A call that waits for so long while nothing fails any more should have had its answer.
PEACE_S = 10.0
#: Writes and keys that others look at again.
REMEMBERED = 8
#: A key that was used is used again with this probability before a call, and for another call in one of so many cases.
KEY_AGAIN = 0.04
#: All connections of the client break while a call is under way, with this probability and within so long: its retry meets the first try.
TORN = 0.015
TORN_WITHIN_S = 0.006
MISUSE_ONE_IN = 4


class Callers:
    """All callers of a run. Times in the records are of true time, which nobody in the simulation sees."""

    def __init__(self, cluster: SimCluster, plan: Plan) -> None:
        self.cluster = cluster
        self.records: list[Record] = []
        self.is_over = False
        self.may_not_rest = False
        self.answered: Counter[str] = Counter()  # by caller
        self.clients: dict[str, SimClient] = {}
        self.under_way: dict[str, Record] = {}
        self._plan = plan
        self._tokens = 0
        self._began_s = 0.0
        self._written: deque[str] = deque(maxlen=REMEMBERED)  # actors with the last acknowledged writes, whosever
        self._keyed: deque[tuple[str, str, str, int]] = deque(maxlen=REMEMBERED)  # (actor, key, token, version)
        #: Where dates jump, idempotency keys may be as old as they look.
        self._keeps_keys = not any(step.verb == "date" for step in plan.steps)
        self.alive: dict[str, None] = {}

    @property
    def all_ended(self) -> bool:
        return not self.alive

    def start(self) -> None:
        self._began_s = self.cluster.now_s
        for _ in range(self._plan.clients):
            self.start_client()

    def start_client(self) -> None:
        client = self.cluster.client()
        self.clients[client.process.name] = client
        for number in range(self._plan.callers):
            name = f"{client.process.name}.caller{number}"
            self.alive[name] = None
            client.spawn(lambda opened, name=name: self._caller(opened, name))

    def kill_client(self, name: str) -> bool:
        """SIGKILL of a client: what it had under way nobody knows of. Another takes its place."""
        client = self.clients.pop(name, None)
        if client is None:
            return False
        client.process.end()
        for caller in list(self.under_way):
            if caller.startswith(name + "."):
                self.records.append(self.under_way.pop(caller))
        for number in range(self._plan.callers):
            self.alive.pop(f"{name}.caller{number}", None)
        self.start_client()
        return True

    async def _caller(self, client: Client, name: str) -> None:
        rng = random.Random(f"{self._plan.seed} {name}")
        habit = rng.choice(("any", "any", "hot", "impatient"))
        life = 0
        while not self.is_over:
            # In bursts, with rests between them: calls meet calls, and a simulated second stays cheap.
            if rng.random() < CALLS_ON:
                await asyncio.sleep(rng.random() * 2 * self._plan.think_s)
            else:
                await self._rest(rng.random() * 2 * self._plan.rest_s)
            caller = f"{name}.{habit}.{life}"
            record = self._next_call(habit, rng, caller)
            view = client.with_options(timeout_s=0.05 + 2 * rng.random()) if habit == "impatient" else client
            key = f"{name}-{self._tokens}" if record.kind == "change" and rng.random() < 0.05 else None
            if self._keyed and rng.random() < KEY_AGAIN:
                await self._use_key_again(view, rng)
            self.under_way[caller] = record
            if rng.random() < TORN and self.cluster.now_s < self._calm_s:
                asyncio.get_running_loop().call_later(rng.random() * TORN_WITHIN_S, self._tear, self.clients[name.partition(".")[0]])
            await self._make(
                view.with_options(idempotency_key=key) if key else view, record, is_twice=key is not None and rng.random() < 0.5
            )
            del self.under_way[caller]
            self.records.append(record)
            if record.is_acknowledged_write:
                self._written.append(record.actor)
                if key is not None and self._keeps_keys:
                    self._keyed.append((record.actor, key, record.token, record.version))
            self.answered[name] += record.outcome == "ok"
            life += record.outcome == "unknown"
        self.alive.pop(name, None)

    @property
    def _calm_s(self) -> float:
        """From then on nothing fails any more."""
        return self._began_s + self._plan.calm_s

    def _tear(self, client: SimClient) -> None:
        for transport in list(client.process.loop.transports):
            transport.abort()
            self.cluster.world.counts["connections torn under a call"] += 1

    async def _rest(self, seconds: float) -> None:
        while seconds > 0 and not (self.is_over or self.may_not_rest):
            await asyncio.sleep(min(seconds, REST_LOOK_S))
            seconds -= REST_LOOK_S

    def _next_call(self, habit: str, rng: random.Random, caller: str) -> Record:
        record = Record("change", "", "", "", 0, -1, 0, 0, "unknown", caller)
        kind = rng.random()
        if habit == "hot":
            record.kind = "change" if kind < 0.5 else "read"
            record.actor = f"h{int(self.cluster.now_s // HOT_S)}-{rng.randrange(HOT_ACTORS)}"
        else:
            record.actor = f"a{rng.randrange(COLD_ACTORS)}"
            if kind > 0.65:
                record.kind = "read"
                if kind > 0.8 and self._written:
                    record.actor = self._written[-1]  # by whoever wrote it: what one was told, everybody sees
            elif kind > 0.4:
                # Always from the lower to the higher name: chains that wait for each other in a ring would only time out.
                # To itself one raises after it has changed its balance: nothing of that may stay.
                record.actor, record.to = sorted([record.actor, f"a{rng.randrange(COLD_ACTORS)}"])
                record.kind, record.amount = "transfer", 1 + rng.randrange(9)
        if record.kind != "read":
            self._tokens += 1
            record.token = f"t{self._tokens}"
        return record

    async def _make(self, client: Client, record: Record, *, is_twice: bool) -> None:
        actor = client.get(Ledger, record.actor)
        began_s = self.cluster.now_s
        record.began_ns = self.cluster.world.now_ns + 1
        try:
            if record.kind == "change":
                record.version = await self._change(actor, record.token, times=2 if is_twice else 1)
            elif record.kind == "transfer":
                record.version = await actor.transfer(record.token, record.to, record.amount)
                self._require(record.actor != record.to, f"{record} has not raised")
            else:
                record.version, record.token = await actor.read()
            record.outcome = "ok"
        except ReentrancyError as error:
            record.outcome = "raised"
            self._require(record.kind == "transfer" and record.actor == record.to, f"{record}: {error}")
        except ActorGridError as error:
            record.outcome = outcome_of(error)
            record.error = f"{type(error).__name__}: {error}"[:300]
            waited_s = self.cluster.now_s - max(began_s, self._calm_s)
            is_late = isinstance(error, DeadlineExceededError) and waited_s > PEACE_S
            self._require(not is_late, f"nothing has failed for {waited_s:.1f} s, and {record} was not answered")
        if record.outcome != "unknown":
            record.ended_ns = self.cluster.world.now_ns + 1

    async def _change(self, ledger: Any, token: str, *, times: int) -> int:
        """A change that is asked for several times at once, under one key: all answers are the same."""
        calls = [ledger.change(token) for _ in range(times)]
        answers: list[Any] = []
        for call in calls:
            try:
                answers.append(await call)
            except ActorGridError as error:
                answers.append(error)
        versions = {answer for answer in answers if not isinstance(answer, ActorGridError)}
        self._require(len(versions) <= 1, f"one key, asked for {token} {times} times at once: {answers}")
        for version in versions:
            return version
        raise next((error for error in answers if isinstance(error, OutcomeUnknownError)), answers[0])

    async def _use_key_again(self, client: Client, rng: random.Random) -> None:
        """The same call under the same key gets the same answer, another call is refused; neither changes anything."""
        actor, key, token, version = rng.choice(self._keyed)
        is_same = rng.randrange(MISUSE_ONE_IN) > 0
        call = f"the key {key} of {actor}.change({token!r}), which made {version}, again for {'the same' if is_same else 'another'} call"
        ledger = client.with_options(idempotency_key=key).get(Ledger, actor)
        try:
            answer = await ledger.change(token if is_same else f"{token} again")
        except RequestError as error:
            self._require(not is_same, f"{call}: {error}")
        except ActorGridError:
            return
        else:
            self._require(is_same and answer == version, f"{call}: {answer}")
        self.cluster.world.counts["keys used again"] += 1

    def _require(self, condition: bool, what: str) -> None:
        if not condition:
            self.cluster.world.problems.append(what)

    def read_back(self) -> dict[str, ReadBack]:
        """What every actor that was called says now."""
        self.records += self.under_way.values()
        self.under_way.clear()
        actors = sorted({record.actor for record in self.records} | {record.to for record in self.records if record.to})

        async def reading(client: Client) -> list[Any]:
            return await client.map(Ledger.read_all, [(actor,) for actor in actors])

        found = self.cluster.call(reading, READ_BACK_S)
        return {
            actor: ReadBack(version, balance, [tuple(pair) for pair in made], recent)
            for actor, (version, balance, made, recent) in zip(actors, found, strict=True)
        }
