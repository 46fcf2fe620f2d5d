"""One page for people: what was measured, in tables and plots, all in one file that can be sent around; the plots lie beside it too."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from bench import plots, tables
from bench.comparison import Comparison, compare, is_quiet
from bench.ratios import LIMIT_SYSTEM, Ratio, ours_of, ratios_of
from bench.results import OURS, FormatError, Results, Row

TEMPLATE = "report.html.j2"
#: Groups of scenarios, in the order of the page.
FAMILIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Calls", ("write", "read", "one", "mixed", "map", "chain", "fan-out")),
    ("Large state", ("large",)),
    ("Cold actors", ("storm", "million")),
    ("Partitions, clients, hosts", ("partitions", "scale-clients", "scale-hosts")),
    ("Faults", ("failover", "drain")),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Card:
    """One figure at the top of the page."""

    title: str
    value: str
    unit: str
    under: str
    is_bad: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """A plot with what it shows. `data` is base64."""

    name: str
    title: str
    text: str
    data: str


def write_report(found: Sequence[Results], out: Path, *, before: Results | None = None) -> Path:
    """Write ``index.html`` and the plots as PNG files into `out`.

    :param found: results of one machine; of rows that are in several, the newest counts
    :param before: an older result to compare with; default: of two or more results, the oldest
    :returns: the page
    :raises FormatError: there are no rows
    """
    ordered = sorted(found, key=lambda each: each.created)
    if not any(each.rows for each in ordered):
        raise FormatError("nothing to report: the results have no rows")
    newest = ordered[-1]
    if before is None and len(ordered) > 1 and ordered[0].created < newest.created:
        before = ordered[0]
    rows = list({row.key: row for each in ordered for row in each.rows}.values())
    out.mkdir(parents=True, exist_ok=True)
    # Of each result by itself: only what was measured in one run can be held against each other.
    ratios = list({(each.operation, each.system, each.in_flight): each for results in ordered for each in ratios_of(results.rows)}.values())
    pictures = _pictures(rows, ratios, out)
    page = out / "index.html"
    page.write_text(_render(newest, rows, ratios, pictures, compare(before, newest) if before is not None else None), encoding="utf-8")
    return page


def _render(newest: Results, rows: list[Row], ratios: list[Ratio], pictures: list[Picture], compared: Comparison | None) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"number": tables.number, "ms": tables.milliseconds, "read_back": tables.read_back_of}
    environment.filters |= {"disturbance": tables.disturbance, "is_disturbed": tables.is_disturbed, "grid": tables.grid_of}
    environment.globals["name_of"] = lambda row: tables.name_of(row, rows)
    environment.globals["figure"] = tables.figure
    told = {name for _, names in FAMILIES for name in names}
    ours = [row for row in rows if row.system == OURS]
    families = [(title, [row for row in ours if row.scenario in names and row.runs]) for title, names in FAMILIES]
    families.append(("Others", [row for row in ours if row.scenario not in told and row.runs]))
    context: dict[str, Any] = {
        "results": newest,
        "is_quiet": is_quiet(newest),
        "disturbed": sum(tables.is_disturbed(row) for row in rows),
        "cards": cards_of(rows),
        "pictures": pictures,
        "families": [(title, found) for title, found in families if found],
        "resting": [row for row in ours if row.figures],
        "peers": [row for row in rows if row.system != OURS and row.runs],
        "ratios": ratios,
        "limit": LIMIT_SYSTEM,
        "compared": compared if compared is not None and compared.changes else None,
        "count": len(rows),
    }
    return environment.get_template(TEMPLATE).render(context)


def cards_of(rows: Sequence[Row]) -> list[Card]:
    """The figures that are asked for first."""
    cards = []
    peaks = {operation: _peak(rows, operation) for operation in ("write", "read", "map")}
    titles = {"write": "Writes, synced on a quorum", "read": "Reads, linearizable", "map": "Reads in batches"}
    for operation, row in peaks.items():
        if row is not None:
            under = f"{tables.number(row.cpu_us_per_call)} µs of CPU per call, {row.in_flight:,} in flight"
            cards.append(Card(titles[operation], f"{row.calls_per_s:,.0f}", "per second", under))
    cards += [_alone(row) for row in rows if row.scenario == "one" and row.system == OURS and row.runs]
    for operation in ("write", "read"):
        opened = [row for row in rows if row.system == OURS and row.scenario == operation and row.loop == "open" and row.runs]
        if opened:
            row = opened[0]
            under = f"p50 {tables.milliseconds(row.p50_ms)} ms, at {row.load_label} of the peak ({row.rate_asked:,.0f}/s), open loop"
            cards.append(Card(f"{operation.title()} latency, p99", tables.milliseconds(row.p99_ms), "ms", under))
    judged = [row for row in rows if row.system == OURS and row.faults is not None]
    for row in judged:
        if row.scenario in ("failover", "drain") and row.faults is not None:
            title = "A host is killed" if row.scenario == "failover" else "A host is drained"
            under = f"slowest call; {row.faults.failed} failed, {row.faults.lost} lost, {row.faults.doubled} twice"
            cards.append(Card(title, tables.milliseconds(row.slowest_ms), "ms", under, bool(row.faults.lost or row.faults.doubled)))
    if judged:
        changes = sum(row.faults.acknowledged for row in judged if row.faults is not None)
        wrong = sum(row.faults.lost + row.faults.doubled for row in judged if row.faults is not None)
        cards.append(Card("Lost or made twice", f"{wrong:,}", "changes", f"of {changes:,} acknowledged, all read back", wrong > 0))
    return cards


def _alone(row: Row) -> Card:
    """One caller, one call at a time, beside others in the same minute."""
    ratios = [f"{tables.number(value)} × {name.removeprefix('p50_of_').replace('_', ' ')}" for name, value in row.figures.items()]
    under = [*ratios, f"{tables.number(row.cpu_us_per_call)} µs of CPU"]
    return Card(f"One caller's {row.operation}, p50", tables.milliseconds(row.p50_ms), "ms", ", ".join(under))


def _peak(rows: Sequence[Row], operation: str) -> Row | None:
    if operation == "map":
        found = [row for row in rows if row.system == OURS and row.scenario == "map" and row.runs]
        return max(found, key=lambda row: row.calls_per_s, default=None)
    levels = {row.in_flight for row in rows if row.system == OURS and row.scenario == operation and row.loop == "closed"}
    candidates = [row for row in (ours_of(rows, operation, each) for each in levels) if row is not None]
    return max(candidates, key=lambda row: row.calls_per_s, default=None)


def _pictures(rows: Sequence[Row], ratios: Sequence[Ratio], out: Path) -> list[Picture]:
    wanted: list[tuple[str, str, str, bytes | None]] = [
        (
            "ratios",
            "Compared with other systems",
            "Calls per second of actorgrid, divided by the other system's, in the same run on the same machine. Right of the line "
            "actorgrid is faster. What each of them promises for that is in the table of peers.",
            plots.ratio_bars(ratios),
        ),
        (
            "throughput",
            "Throughput against concurrency",
            "So many callers, each with one call at a time. Higher is better.",
            plots.throughput(rows),
        ),
        (
            "latency",
            "Latency percentiles",
            "Lower and flatter is better. In the open loop calls come at a fixed rate, and each is timed from when it was due: "
            "a stall is felt by every call that falls into it.",
            plots.latencies(rows),
        ),
    ]
    for scenario, title in (
        ("failover", "A host is killed with SIGKILL, under load"),
        ("drain", "A host is drained and taken back, under load"),
    ):
        for row in rows:
            if row.scenario == scenario and row.faults is not None and row.timeline:
                faults, ms = row.faults, tables.milliseconds
                text = (
                    f"{row.in_flight:,} callers. Longest time without any answer: {ms(faults.longest_gap_ms)} ms. Slowest call: "
                    f"{ms(row.slowest_ms)} ms. {faults.failed:,} calls failed, {faults.lost:,} changes lost, {faults.doubled:,} made twice."
                )
                is_ours = row.system == OURS
                name = scenario if is_ours else f"{scenario}-{row.system}"
                wanted.append((name, title if is_ours else f"{row.system}: one node is killed", text, plots.timeline(row)))
    made = []
    for name, title, text, png in wanted:
        if png is not None:
            (out / f"{name}.png").write_bytes(png)
            made.append(Picture(name, title, text, base64.b64encode(png).decode()))
    return made
