"""Settings: frozen, each with its unit, its range and the reason of its default.

Units stand last in the name. A setting has the same name as environment variable (``ACTORGRID_`` + upper case).
`check` finds every problem at once; a host or client refuses to start with any.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Self

from actorgrid.errors import SettingsError

MIB = 1 << 20


def setting(default: Any, *, low: float, high: float, why: str) -> Any:
    """A field with an inclusive range and the reason for its default."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "why": why})


class Checked:
    """Range checks and environment look-up for a settings dataclass."""

    def __post_init__(self) -> None:
        problems = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            low, high = field.metadata["low"], field.metadata["high"]
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                problems.append(f"setting {field.name}: {value!r} is outside the allowed range {low:g}..{high:g}")
        if problems:
            raise SettingsError(*problems)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None, **overrides: Any) -> Self:
        """Defaults, overridden by ``ACTORGRID_<NAME>`` variables, overridden by `overrides`.

        :raises SettingsError: a variable is not a number, or a value is out of range; all of them are named
        """
        source = os.environ if environment is None else environment
        values: dict[str, Any] = {}
        problems = []
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            name = "ACTORGRID_" + field.name.upper()
            if name in source:
                try:
                    values[field.name] = (int if isinstance(field.default, int) else float)(source[name])
                except ValueError:
                    problems.append(f"{name}: expected {type(field.default).__name__}, got {source[name]!r}")
        try:
            settings = cls(**{**values, **overrides})
        except SettingsError as error:
            raise SettingsError(*problems, *error.problems) from None
        if problems:
            raise SettingsError(*problems)
        return settings


@dataclasses.dataclass(frozen=True, slots=True)
class WireSettings(Checked):
    """Bounds both ends keep (I16)."""

    frame_bytes_max: int = setting(16 * MIB, low=64 * 1024, high=256 * MIB, why="a batch of 1,000 calls of 1 KiB fits many times over")
    hello_bytes_max: int = setting(4096, low=512, high=65536, why="nothing but the handshake is read from a stranger")
    handshake_timeout_s: float = setting(5.0, low=0.1, high=60, why="ten times a slow TLS handshake")
    write_buffer_bytes_max: int = setting(64 * MIB, low=MIB, high=1024 * MIB, why="a peer that reads slower than this is cut off")


@dataclasses.dataclass(frozen=True, slots=True)
class ClientSettings(Checked):
    """How a client behaves."""

    timeout_s: float = setting(30.0, low=0.001, high=86_400, why="longer than any failover, shorter than a person waits")
    connect_timeout_s: float = setting(5.0, low=0.05, high=300, why="a host on the same continent answers within one")
    retry_first_s: float = setting(0.005, low=0.0005, high=10, why="a moved primary is found within milliseconds; doubles from here")
    retry_max_s: float = setting(0.5, low=0.001, high=60, why="a host that is started again is found within half a second")
    in_flight_max: int = setting(65_536, low=1, high=1_048_576, why="calls waiting for an answer; past it OverloadedError at once (I16)")
    in_flight_bytes_max: int = setting(256 * MIB, low=MIB, high=65_536 * MIB, why="encoded arguments held for retries (I16)")
    session_window: int = setting(
        65_536, low=16, high=1_048_576, why="newest minus oldest unanswered call per partition; bounds what the grid must remember"
    )


@dataclasses.dataclass(frozen=True, slots=True)
class HostSettings(Checked):
    """How a host behaves."""

    actor_queue_max: int = setting(4096, low=1, high=1_048_576, why="calls waiting for one actor")
    host_queue_max: int = setting(65_536, low=16, high=4_194_304, why="calls admitted and not answered, over all actors")
    host_queue_bytes_max: int = setting(512 * MIB, low=MIB, high=65_536 * MIB, why="argument bytes of those calls")
    activation_idle_s: float = setting(
        600.0, low=0.01, high=86_400 * 30, why="state stays on disk; what is not called for ten minutes is not hot"
    )
    activation_bytes_max: int = setting(
        1024 * MIB, low=MIB, high=1_048_576 * MIB, why="estimated memory of activations; past it the least recently used leave"
    )
    loop_block_report_s: float = setting(0.1, low=0.01, high=60, why="what callers of other actors notice")
    loop_block_limit_s: float = setting(
        1.0, low=0.05, high=3600, why="below the host lease of 1.5 s, so that one actor cannot cost the host its leases"
    )
    turn_stuck_report_s: float = setting(10.0, low=0.01, high=86_400, why="a turn that waits longer is reported")
    turn_cancel_grace_s: float = setting(
        2.0, low=0.01, high=600, why="what a turn gets to clean up after its deadline, before its activation is abandoned"
    )
    blocking_threads_max: int = setting(32, low=1, high=1024, why="threads for @grid.blocking methods, started as needed")
    log_retention_bytes: int = setting(
        4 * MIB, low=64 * 1024, high=65_536 * MIB, why="per partition; what a restarted replica can catch up from"
    )
    session_checkpoint_entries: int = setting(
        4096, low=16, high=1_000_000, why="log entries replayed per partition at a restart, at most about this many"
    )
    sessions_max: int = setting(10_000, low=8, high=1_000_000, why="clients remembered per partition")
    session_bytes_max: int = setting(
        64 * MIB, low=MIB, high=65_536 * MIB, why="per partition; results remembered for clients, also of those that are gone"
    )
    session_records_max: int = setting(
        131_072, low=64, high=4_194_304, why="unacknowledged results remembered per client and partition; twice the client's window"
    )
    idempotency_retention_s: float = setting(
        86_400.0, low=1, high=86_400 * 365, why="an application that was down for a night may still ask again"
    )
    connections_max: int = setting(10_000, low=4, high=1_000_000, why="sockets of clients and hosts")
    replica_restart_wait_s: float = setting(
        60.0, low=0.1, high=86_400, why="a host that is down for less gets its replicas back as they are; most restarts take less"
    )
    copy_bytes_per_s: int = setting(
        32 * MIB, low=64 * 1024, high=65_536 * MIB, why="of copies of partitions to other hosts, together; a quarter of a gigabit link"
    )
    http_port_offset: int = setting(0, low=0, high=50_000, why="HTTP for operators listens on the host's port plus this; 0: nowhere")
    stop_grace_s: float = setting(
        10.0, low=0.0, high=86_400, why="what a host waits on SIGTERM until no partition needs it; below what its supervisor gives it"
    )
    placement_quiet_s: float = setting(10.0, low=0.0, high=86_400, why="after a host came or went nothing is moved for balance's sake")
    huge_pages_look_s: float = setting(
        5.0, low=0.0, high=86_400, why="how often memory in use is moved into huge pages, where the system has them; 0: never"
    )
