"""Two results against each other: what became worse.

The headline unit is CPU per call: it is the steadiest on a machine that others use too. A rate that fell alone counts only if both
machines were quiet meanwhile; else it is a warning.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from rich.console import Console
from rich.table import Table

from bench.machine import LOAD_BEFORE_MAX
from bench.results import OURS, Results, Row
from bench.tables import disturbance, figure, is_disturbed, name_of, number

LIMIT = 0.10
#: Figures that should be small. They are warned of and no more: what an idle host takes moves by a tenth by itself.
WATCHED = (
    "core_percent_per_host",
    "bytes_per_activation",
    "disk_bytes_per_actor",
    "restart_s",
    "drain_s",
    "whole_again_s",
    "cpu_us_per_call_min",
)

Judgement = Literal["", "better", "warning", "regression"]


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One row in both results. Changes are fractions of the old figure; above zero is more.

    :ivar why: what the judgement rests on
    """

    name: str
    system: str
    load_name: str
    old: Row
    new: Row
    cpu: float
    rate: float
    judgement: Judgement
    why: str


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that two results have in common, and what they have not.

    :ivar remarks: what to know before one believes it: different machines, no quiet
    :ivar figures: other figures that became worse, in words
    """

    changes: tuple[Change, ...]
    remarks: tuple[str, ...]
    figures: tuple[str, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]

    @property
    def regressions(self) -> list[Change]:
        return [each for each in self.changes if each.judgement == "regression"]


def compare(old: Results, new: Results) -> Comparison:
    """Find the rows that both have, and judge each."""
    before = {row.key: row for row in old.rows}
    after = {row.key: row for row in new.rows}
    quiet = {id(each): is_quiet(each) for each in (old, new)}
    changes = []
    for key, row in after.items():
        if key in before and row.runs and before[key].runs:
            changes.append(_change(before[key], row, new.rows, all_quiet=quiet[id(old)] and quiet[id(new)]))
    return Comparison(
        changes=tuple(changes),
        remarks=tuple(_remarks(old, new)),
        figures=tuple(line for key, row in after.items() if key in before for line in _worse_figures(before[key], row, new.rows)),
        only_old=tuple(_label(row, old.rows) for key, row in before.items() if key not in after and row.runs),
        only_new=tuple(_label(row, new.rows) for key, row in after.items() if key not in before and row.runs),
    )


def is_quiet(found: Results) -> bool:
    """Whether nobody else used the machine much before the run. What others used meanwhile is told by each row."""
    return found.machine.load_1m_before <= LOAD_BEFORE_MAX * found.machine.cores


def _change(old: Row, new: Row, rows: list[Row], *, all_quiet: bool) -> Change:
    cpu, rate = _part(old.cpu_us_per_call, new.cpu_us_per_call), _part(old.calls_per_s, new.calls_per_s)
    judgement: Judgement = ""
    reasons = []
    if _is_wrong(new):
        assert new.faults is not None
        judgement, reasons = "regression", [f"{new.faults.lost} lost, {new.faults.doubled} twice"]
    elif cpu > LIMIT:
        judgement, reasons = "regression", [f"CPU per call {cpu:+.0%}"]
    elif rate < -LIMIT and new.loop == "closed":
        disturbed = not all_quiet or is_disturbed(old) or is_disturbed(new)
        judgement = "warning" if disturbed else "regression"
        reasons = [f"rate {rate:+.0%}" + (", on a machine that was not quiet" if disturbed else "")]
    elif new.failed and not old.failed:
        judgement, reasons = "warning", [f"{new.failed:,} calls failed"]
    elif _is_wrong(old):
        judgement, reasons = "better", ["nothing lost or twice any more"]
    elif cpu < -LIMIT:
        judgement, reasons = "better", [f"CPU per call {cpu:+.0%}"]
    if judgement == "regression" and new.system != OURS:
        # Another system is the same as before: if its figures moved, the machine did.
        judgement = "warning"
    return Change(name_of(new, rows), new.system, new.load_name, old, new, cpu, rate, judgement, "; ".join(reasons))


def _is_wrong(row: Row) -> bool:
    return row.faults is not None and bool(row.faults.lost or row.faults.doubled)


def _worse_figures(old: Row, new: Row, rows: list[Row]) -> list[str]:
    return [
        f"{name_of(new, rows)}: {figure(name, old.figures[name])} → {number(new.figures[name])}"
        for name in WATCHED
        if name in old.figures and name in new.figures and _part(old.figures[name], new.figures[name]) > LIMIT
    ]


def _part(old: float, new: float) -> float:
    return new / old - 1 if old else 0.0


def _label(row: Row, rows: list[Row]) -> str:
    return f"{name_of(row, rows)} ({row.system}, {row.load_name})"


def _remarks(old: Results, new: Results) -> list[str]:
    remarks = []
    for name in ("cpu", "cores", "kernel", "python", "build"):
        was, now = getattr(old.machine, name), getattr(new.machine, name)
        if was != now:
            what = "DIFFERENT MACHINES" if name in ("cpu", "cores") else "different"
            remarks.append(f"{what}: {name} was {was}, is {now}")
    for word, each in (("old", old), ("new", new)):
        if not is_quiet(each):
            load, cores = each.machine.load_1m_before, each.machine.cores
            remarks.append(f"the machine was not quiet before the {word} run: load {load:.2f} on {cores} cores")
        disturbed = [disturbance(row) for row in each.rows if is_disturbed(row)]
        if disturbed:
            remarks.append(f"{len(disturbed)} rows of the {word} run were disturbed: others had up to {max(disturbed):.0%} of the machine")
    return remarks


_STYLES: dict[Judgement, str] = {"": "", "better": "green", "warning": "yellow", "regression": "bold red"}


def show(compared: Comparison, console: Console) -> None:
    """A table, the remarks, and a last line that says it all."""
    table = Table()
    for name in ("call", "system"):
        table.add_column(name, no_wrap=True)
    for name in ("in flight", "CPU us/call", "", "calls/s", "", "p99 ms"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for each in compared.changes:
        table.add_row(
            each.name,
            each.system,
            each.load_name,
            f"{number(each.old.cpu_us_per_call)} → {number(each.new.cpu_us_per_call)}",
            f"{each.cpu:+.0%}",
            f"{each.old.calls_per_s:,.0f} → {each.new.calls_per_s:,.0f}",
            f"{each.rate:+.0%}",
            f"{number(each.old.p99_ms)} → {number(each.new.p99_ms)}",
            f"{each.judgement}: {each.why}" if each.judgement else "",
            style=_STYLES[each.judgement],
        )
    if compared.changes:
        console.print(table)
    for remark in compared.remarks:
        console.print(remark, highlight=False, markup=False, style="yellow")
    for line in compared.figures:
        console.print(line, highlight=False, markup=False, style="yellow")
    for word, labels in (("old", compared.only_old), ("new", compared.only_new)):
        if labels:
            console.print(f"only in the {word} result: {'; '.join(labels)}", highlight=False, markup=False)
    if not compared.changes:
        console.print("the two have no row in common")
    elif not compared.regressions:
        console.print(f"no regression over {LIMIT:.0%} in {len(compared.changes)} rows")
    else:
        console.print(f"{len(compared.regressions)} regressions over {LIMIT:.0%} in {len(compared.changes)} rows")
