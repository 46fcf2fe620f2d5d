"""``python -m tests.faults.load_client CONFIG.json``: one client process with many callers, which writes down all they do.

Callers are closed loops, each with its own habit:

- *mixed*: changes, transfers and reads of many actors;
- *writer*: changes of many actors and nothing else;
- *hot*: changes and reads of few actors, together with the hot callers of the other processes (ten for one actor at most);
- *follower*: reads an actor right after somebody, of any process, was told that it was changed;
- *impatient*: like mixed, with deadlines that a failover does not keep, so that unknown outcomes happen;
- *prober*: not a loop: sends reads to each host on a connection of its own, primary or not, answered or not. Only so a primary that
  was stopped, or cut off, is asked for what others have changed meanwhile.

After an unknown outcome a caller makes no further call; a new one takes its place.

SIGTERM ends it: calls under way are waited for, what then has no answer is written down as unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from actorgrid import grid
from actorgrid.ambient import new_client_id
from actorgrid.client.connection import Connection, connect
from actorgrid.client.connection import RefusedError as HandshakeRefusedError
from actorgrid.errors import ActorError, ActorGridError, OutcomeUnknownError, SessionExpiredError, TransientError
from actorgrid.ids import make_address, partition_of
from actorgrid.settings import ClientSettings, WireSettings
from actorgrid.wire import messages
from actorgrid.wire.framing import frame
from tests.faults.history import HistoryWriter, LastAcknowledged, Outcome, Record, cold_actor, hot_actor

sys.path.insert(0, str(Path(__file__).parent / "apps"))
from fault_ledger import Ledger as Ledger  # type: ignore[import-not-found]

OUTSTANDING_MAX = 2_000
STOP_WITHIN_S = 45.0
#: A call that takes longer outlives every failover there is; what is known about it is written to standard error.
SLOW_NS = 8 * 10**9
PENDING_DETAILS = ("attempts", "is_parked", "is_in_doubt", "refusals", "refused_by", "last_error")


class LoadConfig(msgspec.Struct, kw_only=True):
    """What one process is told.

    :ivar callers: how many of each habit
    :ivar think_s: mean pause of a caller between two calls
    :ivar probe: (host, address, port) of each host that the prober asks
    """

    process: int
    processes: int
    seed: str
    seeds: str
    directory: Path
    partitions: int
    callers: dict[str, int]
    think_s: float = 0.03
    timeout_s: float = 30.0
    cold_actors: int = 48
    generation_s: float = 60.0
    hot_actors: int = 2
    slice_s: float = 4.0
    probe: list[tuple[str, str, int]] = []
    probe_every_s: float = 0.015

    @property
    def history_path(self) -> Path:
        return self.directory / f"history-{self.process}.jsonl"

    @property
    def status_path(self) -> Path:
        return self.directory / f"client-{self.process}.json"


class ClientStatus(msgspec.Struct):
    """What a client process says of itself, every second and at the end."""

    process: int
    calls: int
    acknowledged_writes: int
    longest_gap_ns: int
    longest_gap_ended_ns: int
    outcomes: dict[str, int]
    errors: dict[str, int]
    unexpected: list[str]
    is_over: bool


@dataclasses.dataclass
class Counts:
    """What this process has seen so far."""

    calls: int = 0
    acknowledged_writes: int = 0
    last_write_ns: int = 0
    longest_gap_ns: int = 0
    longest_gap_ended_ns: int = 0
    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)
    errors: Counter[str] = dataclasses.field(default_factory=Counter)
    unexpected: list[str] = dataclasses.field(default_factory=list)

    def wrote(self, at_ns: int) -> None:
        self.acknowledged_writes += 1
        if self.last_write_ns and at_ns - self.last_write_ns > self.longest_gap_ns:
            self.longest_gap_ns = at_ns - self.last_write_ns
            self.longest_gap_ended_ns = at_ns
        self.last_write_ns = at_ns


class Load:
    """The callers of this process."""

    def __init__(self, config: LoadConfig) -> None:
        self.config = config
        self.counts = Counts()
        self.stopping = False
        self._history = HistoryWriter(config.history_path)
        self._last = LastAcknowledged(config.directory / "last-acknowledged", config.processes)
        self._under_way: dict[str, Record] = {}
        self._pending: dict[str, Any] = {}
        self._reported: set[str] = set()
        self._tokens = 0

    async def run(self) -> None:
        config = self.config
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        reporting = loop.create_task(self._report())
        async with grid.connect(config.seeds, settings=ClientSettings(timeout_s=config.timeout_s)) as client:
            tasks = [
                loop.create_task(self._caller(client, habit, slot))
                for slot, habit in enumerate(habit for habit, count in sorted(config.callers.items()) for _ in range(count))
            ]
            tasks += [loop.create_task(Prober(self, *each).run()) for each in config.probe]
            while not self.stopping:
                await asyncio.sleep(0.05)
                if not self.stopping and (crashed := [task for task in (*tasks, reporting) if task.done()]):
                    self.counts.unexpected += [repr(task.exception()) for task in crashed]
                    break
            self.stopping = True
            _, late = await asyncio.wait(tasks, timeout=STOP_WITHIN_S)
            for task in late:
                task.cancel()
            await asyncio.wait(tasks)
        for record in self._under_way.values():
            self._write(record)
        reporting.cancel()
        self._history.close()
        self._save_status(is_over=True)

    def stop(self) -> None:
        self.stopping = True

    # -- callers

    async def _caller(self, client: grid.Client, habit: str, slot: int) -> None:
        rng = random.Random(f"{self.config.seed}/{self.config.process}/{slot}")
        life = 0
        while not self.stopping:
            await asyncio.sleep(rng.random() * 2 * self.config.think_s)
            record = self._next_call(habit, rng, f"{self.config.process}.{habit}{slot}.{life}")
            if record is None:
                continue
            view = client.with_options(timeout_s=0.1 + 2 * rng.random()) if habit == "impatient" else client
            self._under_way[record.caller] = record
            await self._make(view, record)
            del self._under_way[record.caller]
            self._write(record)
            if (key := f"{record.caller} {record.began_ns}") in self._reported:
                print(f"slow call over at={time.monotonic_ns()} {key} {record.outcome} {record.error}", flush=True)
            if record.outcome == "unknown":
                life += 1

    def _next_call(self, habit: str, rng: random.Random, caller: str) -> Record | None:
        config = self.config
        record = Record("change", "", "", "", 0, -1, 0, 0, "unknown", caller)
        kind = rng.random()
        if habit == "follower":
            record.kind, record.actor = "read", self._last.get(rng.randrange(config.processes)) or ""
            return record if record.actor else None
        if habit == "hot":
            record.kind = "change" if kind < 0.5 else "read"
            record.actor = hot_actor(rng.randrange(config.hot_actors), config.slice_s)
        else:
            at_ns = time.monotonic_ns()
            record.actor = cold_actor(rng.randrange(config.cold_actors), config.generation_s, at_ns)
            if habit != "writer" and kind > 0.65:
                record.kind = "read"
            elif habit != "writer" and kind > 0.45:
                # Always from the lower to the higher name: chains that wait for each other in a ring would only time out.
                record.actor, record.to = sorted([record.actor, cold_actor(rng.randrange(config.cold_actors), config.generation_s, at_ns)])
                record.kind, record.amount = "transfer", 1 + rng.randrange(9)
                if record.actor == record.to:
                    record.kind, record.to, record.amount = "change", "", 0
        if record.kind != "read":
            self._tokens += 1
            record.token = f"{config.process}.{self._tokens}"
        return record

    async def _make(self, client: grid.Client, record: Record) -> None:
        actor = client.get(Ledger, record.actor)
        record.began_ns = time.monotonic_ns()
        try:
            call: Any
            if record.kind == "change":
                call = actor.change(record.token)
            elif record.kind == "transfer":
                call = actor.transfer(record.token, record.to, record.amount)
            else:
                call = actor.read()
            self._pending[record.caller] = call
            answer = await call
            if record.kind == "read":
                record.version, record.token = answer
            else:
                record.version = answer
            record.outcome = "ok"
        except ActorGridError as error:
            record.outcome = outcome_of(error)
            record.error = f"{type(error).__name__}: {error}"[:300]
        if record.outcome != "unknown":
            record.ended_ns = time.monotonic_ns()
        if record.is_acknowledged_write:
            self._last.put(self.config.process, record.actor)

    # -- writing down

    def _write(self, record: Record) -> None:
        counts = self.counts
        counts.calls += 1
        counts.outcomes[f"{record.kind} {record.outcome}"] += 1
        if record.error:
            counts.errors[record.error.split(":", 1)[0]] += 1
        if record.is_acknowledged_write:
            counts.wrote(record.ended_ns)
        self._history.add(record)

    def write_probe(self, record: Record) -> None:
        """A read of the prober that was answered or refused."""
        self.counts.calls += 1
        self.counts.outcomes[f"direct {record.outcome}"] += 1
        self._history.add(record)

    def last_acknowledged(self, rng: random.Random) -> str | None:
        return self._last.get(rng.randrange(self.config.processes))

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._history.flush()
            self._save_status(is_over=False)
            self._report_slow_calls()

    def _report_slow_calls(self) -> None:
        """Say once of each call that takes long what the client library knows about it; for people who look for the reason."""
        now_ns = time.monotonic_ns()
        for record in self._under_way.values():
            key = f"{record.caller} {record.began_ns}"
            if now_ns - record.began_ns > SLOW_NS and key not in self._reported:
                self._reported.add(key)
                call = self._pending[record.caller]
                known = {name: str(getattr(call, name, "?"))[:300] for name in PENDING_DETAILS}
                known["sent_to"] = getattr(getattr(call, "connection", None), "name", "nobody")
                print(
                    f"slow at={now_ns} began={record.began_ns} {record.caller} {record.kind} {record.actor} {record.to} {known}", flush=True
                )

    def _save_status(self, *, is_over: bool) -> None:
        counts = self.counts
        status = ClientStatus(
            self.config.process,
            counts.calls,
            counts.acknowledged_writes,
            counts.longest_gap_ns,
            counts.longest_gap_ended_ns,
            dict(counts.outcomes),
            dict(counts.errors),
            counts.unexpected[:20],
            is_over,
        )
        new = self.config.status_path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(status))
        new.replace(self.config.status_path)


def outcome_of(error: ActorGridError) -> Outcome:
    """What a caller knows after an error."""
    if isinstance(error, TransientError):
        return "refused"
    if isinstance(error, OutcomeUnknownError | SessionExpiredError):
        return "unknown"
    if isinstance(error, ActorError):
        return "raised"
    return "unknown"


class Prober:
    """Sends reads to one host, whatever it is and whether it answers; a new connection when the old one is lost."""

    def __init__(self, load: Load, host: str, address: str, port: int) -> None:
        self._load = load
        self._host, self._address, self._port = host, address, port
        self._rng = random.Random(f"{load.config.seed}/prober/{host}")
        self._outstanding: dict[int, Record] = {}
        self._number = 0
        self._connection: Connection | None = None

    async def run(self) -> None:
        load = self._load
        while not load.stopping:
            if self._connection is None or self._connection.is_closed:
                await self._connect()
            elif len(self._outstanding) < OUTSTANDING_MAX and (actor := load.last_acknowledged(self._rng)) is not None:
                self._send(actor)
            await asyncio.sleep(load.config.probe_every_s * 2 * self._rng.random())
        if self._connection is not None:
            self._connection.close(ActorGridError("the prober is over"))

    async def _connect(self) -> None:
        # A client id for each connection: what the last one sent may still be in a buffer of a host that is stopped.
        self._client_id = new_client_id()
        self._number = 0
        self._outstanding.clear()
        hello = messages.Hello(
            messages.MAGIC, messages.PROTOCOL_VERSION_OLDEST, messages.PROTOCOL_VERSION, "", messages.ROLE_CLIENT, self._client_id
        )
        try:
            self._connection = await connect(self, self._address, self._port, hello, wire=WireSettings(), timeout_s=10.0)
        except (ActorGridError, HandshakeRefusedError):
            await asyncio.sleep(0.2)

    def _send(self, actor: str) -> None:
        connection = self._connection
        assert connection is not None
        assert connection.welcome is not None
        self._number += 1
        address = make_address("Ledger", actor)
        partition = partition_of(address, self._load.config.partitions)
        lowest = next(iter(self._outstanding), self._number)
        self._outstanding[self._number] = Record(
            "direct", actor, "", self._host, 0, -1, time.monotonic_ns(), 0, "unknown", f"prober.{self._host}.0"
        )
        call = messages.Call(self._number, address, "read", 20_000, msgspec.Raw(messages.encode(())), None)
        group = messages.CallGroup(partition, b"", lowest, lowest, connection.welcome.positions.get(partition, 0), [call])
        connection.write([frame(messages.encode(messages.Calls([group])))])

    def on_replies(self, connection: Connection, replies: list[messages.Reply]) -> None:
        if connection is not self._connection:
            return
        at_ns = time.monotonic_ns()
        for reply in replies:
            record = self._outstanding.pop(reply.correlation, None)
            if record is None:
                continue
            record.ended_ns = at_ns
            if reply.status == messages.STATUS_OK:
                record.version, record.token = msgspec.msgpack.decode(reply.payload)
                record.outcome = "ok"
            else:
                record.outcome, record.error = "refused", messages.decode_error(reply.payload).error
            self._load.write_probe(record)

    def on_lost(self, connection: Connection, error: ActorGridError) -> None:
        if connection is self._connection:
            self._outstanding.clear()

    def on_goodbye(self, connection: Connection, reason: str) -> None:
        connection.close(ActorGridError(reason))

    def on_batch_replies(self, connection: Connection, replies: Any) -> None: ...
    def on_map(self, connection: Connection, message: Any) -> None: ...
    def on_writable(self, connection: Connection) -> None: ...
    def on_admin_reply(self, connection: Connection, reply: Any) -> None: ...


def main() -> None:
    config = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=LoadConfig, dec_hook=lambda kind, value: kind(value))
    load = Load(config)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(load.run())


if __name__ == "__main__":
    main()
