"""Rows for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from bench.machine import OTHERS_MAX, STEAL_MAX
from bench.ratios import ratios_of
from bench.results import OURS, Results, Row

#: Columns that a narrow terminal does without.
WIDE_ONLY = ("±", "p90", "p99.9")


def calls_table(rows: Sequence[Row], *, title: str = "", narrow: bool = False) -> Table:
    """Rows that have calls."""
    table = Table(title=title or None, title_justify="left")
    has_peers = any(row.system != OURS for row in rows)
    table.add_column("call")
    if has_peers:
        table.add_column("system", no_wrap=True)
    columns = ("in flight", "calls/s", "±", "p50 ms", "p90", "p99", "p99.9", "slowest", "CPU us/call", "others", "read back")
    for name in columns:
        if not (narrow and name in WIDE_ONLY):
            table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        if not row.runs:
            continue
        cells = {
            "in flight": row.load_name,
            "calls/s": f"{row.calls_per_s:,.0f}",
            "±": f"{row.spread / 2:.0%}" if len(row.runs) > 1 else "",
            "p50 ms": milliseconds(row.p50_ms),
            "p90": milliseconds(row.p90_ms),
            "p99": milliseconds(row.p99_ms),
            "p99.9": milliseconds(row.p999_ms),
            "slowest": milliseconds(row.slowest_ms),
            "CPU us/call": number(row.cpu_us_per_call),
            "others": f"[red]{disturbance(row):.0%}[/red]" if is_disturbed(row) else f"{disturbance(row):.0%}",
            "read back": read_back_of(row),
        }
        chosen = [cells[name] for name in columns if not (narrow and name in WIDE_ONLY)]
        table.add_row(
            name_of(row, rows), *([row.system] if has_peers else []), *chosen, style="" if row.system == OURS or not has_peers else "dim"
        )
    return table


def figures_table(rows: Sequence[Row]) -> Table | None:
    """What else was measured; None if nothing was."""
    told = [row for row in rows if row.figures]
    if not told:
        return None
    table = Table("scenario", "grid", "figures")
    for row in told:
        table.add_row(name_of(row, rows), grid_of(row), ", ".join(figure(name, value) for name, value in row.figures.items()))
    return table


def ratios_table(rows: Sequence[Row]) -> Table | None:
    """Ours against each peer; None without peers."""
    ratios = ratios_of(rows)
    if not ratios:
        return None
    table = Table("operation", "against", title="times as good as the other (echo: the limit)", title_justify="left")
    for name in ("in flight", "measured", "our replicas", "rate", "CPU per call", "p50"):
        table.add_column(name, justify="right")
    for each in ratios:
        cells = (f"{number(value)} x" for value in (each.rate, each.cpu, each.p50))
        measured = "in turns" if each.is_beside else ""
        table.add_row(each.operation, each.system, f"{each.in_flight:,}", measured, str(each.ours.replicas), *cells)
    return table


def missing_lines(results: Results) -> list[str]:
    return [f"missing: {each.what}: {each.why}" for each in results.missing]


def name_of(row: Row, rows: Sequence[Row]) -> str:
    """A row's name, with what sets it apart from others of its scenario."""
    alike = [each for each in rows if (each.scenario, each.operation, each.system) == (row.scenario, row.operation, row.system)]
    words = [
        (len({each.hosts for each in alike}) > 1, plural(row.hosts, "host")),
        (len({each.partitions for each in alike}) > 1, plural(row.partitions, "partition")),
        (len({each.replicas for each in alike}) > 1, plural(row.replicas, "replica")),
        (len({each.clients for each in alike}) > 1, plural(row.clients, "client")),
        (row.payload_bytes > 0, f"{row.payload_bytes:,} bytes"),
    ]
    return ", ".join([row.name, *(text for is_told, text in words if is_told)])


def disturbance(row: Row) -> float:
    """What of the machine went to others meanwhile: other processes, and other machines (steal); a fraction of all cores."""
    return row.others + row.steal


def is_disturbed(row: Row) -> bool:
    """Whether somebody else used the machine so much that the row's rate says little. Its CPU per call still does."""
    return row.steal > STEAL_MAX or row.others > OTHERS_MAX


def grid_of(row: Row) -> str:
    counts = ((row.hosts, "host"), (row.partitions, "partition"), (row.replicas, "replica"))
    return ", ".join(plural(count, word) for count, word in counts) if row.hosts else row.system


def read_back_of(row: Row) -> str:
    """Failed, lost and doubled, where something was read back; of a fault also the longest time in which nobody had an answer."""
    if row.faults is None:
        return f"{row.failed:,} failed" if row.failed else ""
    faults = row.faults
    gap = f", gap {faults.longest_gap_ms:,.0f} ms" if faults.longest_gap_ms else ""
    if not (row.failed or faults.failed or faults.lost or faults.doubled):
        return "all once" + gap
    return f"{max(row.failed, faults.failed):,} failed, {faults.lost:,} lost, {faults.doubled:,} twice{gap}"


def figure(name: str, value: float) -> str:
    """``disk_bytes_per_actor`` and its value, for people."""
    return f"{name.replace('_', ' ')} {number(value)}"


def milliseconds(value: float) -> str:
    """With as many digits as say something."""
    return number(value, small=3)


def number(value: float, *, small: int = 2) -> str:
    """Three digits or a little more."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.{small if abs(value) < 1 else 2}f}"


def plural(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"
