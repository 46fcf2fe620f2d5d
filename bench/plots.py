"""Plots as PNG bytes. One function a picture; each returns None if the rows do not have what it shows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from bench.latencies import Latencies
from bench.ratios import Ratio
from bench.results import OURS, Point, Row

BLUE, GREEN, ORANGE, RED, GREY, INK = "#1f5fbf", "#1a8754", "#d9730d", "#c62828", "#8a8f98", "#24292f"
OTHERS = ("#b58900", "#6f42c1", "#0f8b8d", "#a33b20", "#7a8b00", "#c2528b", "#5c6bc0", "#8d6e63", "#78909c", "#26a69a", "#ad1457")
DPI = 130
OPERATIONS = ("write", "read")


def throughput(rows: Sequence[Row]) -> bytes | None:
    """Calls per second against calls in flight, of every system."""
    panels = {each: _by_system(rows, each) for each in OPERATIONS}
    if not any(len(line) > 1 for lines in panels.values() for line in lines.values()):
        return None
    systems = list(dict.fromkeys(system for lines in panels.values() for system in lines))
    colours = _colours(systems)
    figure, axes = _figure(2, height=4.6)
    for axis, (operation, lines) in zip(axes, panels.items(), strict=True):
        ends = []
        for system, line in lines.items():
            ours = system == OURS
            x, y = [row.in_flight for row in line], [row.calls_per_s for row in line]
            axis.plot(
                x,
                y,
                color=colours[system],
                linewidth=2.6 if ours else 1.2,
                marker="o",
                markersize=5 if ours else 3,
                zorder=3 if ours else 2,
            )
            ends.append((y[-1], x[-1], system))
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_title(f"{operation}s")
        axis.set_xlabel("calls in flight")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        _log_ticks(axis.yaxis)
        axis.set_ylabel("calls per second (log)")
        _label_ends(axis, ends, colours)
    return _png(figure)


def latencies(rows: Sequence[Row]) -> bytes | None:
    """Latency by percentile: one caller, the peak, and the open loop."""
    panels: dict[str, list[Row]] = {}
    for operation in OPERATIONS:
        chosen = [row for row in rows if row.system == OURS and row.scenario == operation and row.latencies]
        closed = sorted((row for row in chosen if row.loop == "closed"), key=lambda row: row.in_flight)
        panels[operation] = [*closed[:1], *([closed[-1]] if len(closed) > 1 else []), *(row for row in chosen if row.loop == "open")]
    if not any(panels.values()):
        return None
    figure, axes = _figure(2, height=4.2)
    for axis, (operation, lines) in zip(axes, panels.items(), strict=True):
        for row, colour in zip(lines, (GREEN, BLUE, ORANGE, RED, GREY), strict=False):
            curve = Latencies.decode(row.latencies).curve()
            label = f"{row.in_flight:,} in flight" if row.loop == "closed" else f"open loop, {row.load_label} = {row.rate_asked:,.0f}/s"
            axis.plot(
                [1 / (1 - percent / 100) for percent, _ in curve], [each for _, each in curve], color=colour, linewidth=2, label=label
            )
        axis.set_xscale("log")
        axis.set_yscale("log")
        ticks = [1, 2, 10, 100, 1_000, 10_000, 100_000]
        axis.set_xticks(ticks, ["0", "50 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"])
        axis.xaxis.set_minor_locator(NullLocator())
        _log_ticks(axis.yaxis)
        axis.set_title(f"{operation}s")
        axis.set_xlabel("so many of the calls")
        axis.set_ylabel("took at most, ms (log)")
        if lines:
            axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3, fontsize=9)
    return _png(figure)


def timeline(row: Row) -> bytes | None:
    """Calls per second, and the slowest call, while something happens; every move of a partition is a tick."""
    if len(row.timeline) < 3:
        return None
    # The first slice and the last are not full ones.
    points = row.timeline[:-1]
    figure, (above, below) = _figure(1, rows=2, height=5.4, sharex=True)
    x = [point.at_s for point in points]
    above.fill_between(x, _smooth(points), step="post", color=BLUE, alpha=0.15, linewidth=0)
    above.step(x, _smooth(points), where="post", color=BLUE, linewidth=1.4)
    above.set_ylim(bottom=0)
    above.set_ylabel("calls per second")
    above.yaxis.set_major_formatter(FuncFormatter(_short))
    answered = [point for point in points if point.slowest_ms > 0]
    below.plot([point.at_s for point in answered], [point.slowest_ms for point in answered], ".", color=BLUE, markersize=4)
    below.set_yscale("log")
    _log_ticks(below.yaxis)
    below.set_ylabel("slowest call, ms (log)")
    below.set_xlabel("seconds")
    failed = [point for point in points if point.failed]
    if failed:
        below.plot(
            [point.at_s for point in failed],
            [below.get_ylim()[1]] * len(failed),
            "v",
            color=RED,
            markersize=6,
            label="failed calls",
            clip_on=False,
        )
    kinds = (("build", GREEN, "replica built"), ("swap", ORANGE, "primary moved"), ("remove", GREY, "replica removed"))
    for place, (kind, colour, word) in enumerate(kinds):
        moves = [mark for mark in row.marks if mark.kind == kind]
        if moves:
            below.plot(
                [mark.at_s for mark in moves],
                [0.03 + 0.06 * place] * len(moves),
                "|",
                color=colour,
                markersize=9,
                transform=below.get_xaxis_transform(),
                label=f"{word}: {len(moves)}",
            )
    for place, mark in enumerate(mark for mark in row.marks if mark.kind == "event"):
        for axis in (above, below):
            axis.axvline(mark.at_s, color=RED, linewidth=1, linestyle="--", alpha=0.8)
        above.annotate(
            mark.what,
            (mark.at_s, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, 4 + 11 * (place % 2)),
            textcoords="offset points",
            fontsize=9,
            color=RED,
        )
    if below.get_legend_handles_labels()[0]:
        below.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _png(figure)


def ratio_bars(ratios: Sequence[Ratio]) -> bytes | None:
    """How many times the rate of each peer, at the highest concurrency that both have."""
    chosen: dict[tuple[str, str], Ratio] = {}
    for each in ratios:
        best = chosen.get((each.operation, each.system))
        if best is None or each.in_flight > best.in_flight:
            chosen[each.operation, each.system] = each
    if not chosen:
        return None
    panels = [
        sorted((each for each in chosen.values() if each.operation == operation), key=lambda each: each.rate) for operation in OPERATIONS
    ]
    figure, axes = _figure(2, height=1.4 + 0.36 * max(map(len, panels)))
    for axis, operation, found in zip(axes, OPERATIONS, panels, strict=True):
        colours = [GREY if each.is_limit else BLUE if each.rate >= 1 else RED for each in found]
        in_flight = sorted({each.in_flight for each in found})
        names = [
            ("bare echo (the limit)" if each.is_limit else each.system) + (f", {each.in_flight:,}" if len(in_flight) > 1 else "")
            for each in found
        ]
        bars = axis.barh(names, [each.rate - 1 for each in found], left=1, color=colours, height=0.66)
        axis.bar_label(bars, [f"{each.rate:,.0f} ×" if each.rate >= 10 else f"{each.rate:.2f} ×" for each in found], padding=4, fontsize=9)
        axis.axvline(1, color=INK, linewidth=1)
        axis.set_xscale("log")
        rates = [1.0, *(each.rate for each in found)]
        axis.set_xlim(min(rates) / 4, max(rates) * 4)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} ×"))
        axis.set_title(f"{operation}s" + (f", {' and '.join(f'{each:,}' for each in in_flight)} in flight" if in_flight else ""))
        axis.grid(visible=False, axis="y")
    return _png(figure)


def _by_system(rows: Sequence[Row], operation: str) -> dict[str, list[Row]]:
    """Closed-loop rows of an operation, one for each concurrency: the most replicas, one client, no payload."""
    best: dict[tuple[str, int], Row] = {}
    for row in sorted(rows, key=lambda row: (-row.replicas, row.payload_bytes)):
        if row.runs and row.loop == "closed" and row.scenario == operation and row.clients == 1:
            best.setdefault((row.system, row.in_flight), row)
    found: dict[str, list[Row]] = {}
    for (system, _), row in sorted(best.items(), key=lambda item: (item[0][0] != OURS, item[0])):
        found.setdefault(system, []).append(row)
    return found


def _colours(systems: Sequence[str]) -> dict[str, str]:
    others = [each for each in systems if each != OURS]
    return {OURS: BLUE, **{each: OTHERS[place % len(OTHERS)] for place, each in enumerate(others)}}


def _label_ends(axis: Axes, ends: Sequence[tuple[float, float, str]], colours: dict[str, str]) -> None:
    """Names at the right ends of lines, moved apart where they would lie on each other."""
    if not ends:
        return
    axis.figure.canvas.draw()
    last = -1e9
    to_pixels = axis.transData.transform
    for y, x, system in sorted(ends):
        at = float(to_pixels((x, y))[1])
        moved = max(at, last + 13 * DPI / 100)
        last = moved
        axis.annotate(
            system,
            (x, y),
            xytext=(7, (moved - at) * 72 / axis.figure.dpi - 3),
            textcoords="offset points",
            fontsize=9,
            color=colours[system],
            fontweight="bold" if system == OURS else "normal",
            annotation_clip=False,
        )


def _smooth(points: Sequence[Point]) -> list[float]:
    """Means over three slices: a twentieth of a second alone jumps with the batches."""
    rates = [point.calls_per_s for point in points]
    return [sum(rates[max(0, place - 1) : place + 2]) / len(rates[max(0, place - 1) : place + 2]) for place in range(len(rates))]


def _figure(columns: int, *, rows: int = 1, height: float, sharex: bool = False) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(12, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    made: Any = figure.subplots(rows, columns, sharex=sharex)
    axes: list[Axes] = list(made.flat)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(GREY)
        axis.grid(visible=True, color="#e6e8eb", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(colors=INK, labelsize=9)
    return figure, axes


def _short(value: float, _: object) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def _log_ticks(axis: Axis) -> None:
    """1, 2, 5, 10 ... in plain numbers: also an axis of less than a power of ten has some."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(_short))
    axis.set_minor_formatter(NullFormatter())


def _png(figure: Figure) -> bytes:
    made = io.BytesIO()
    figure.savefig(made, format="png")
    return made.getvalue()
