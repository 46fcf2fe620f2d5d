"""``python -m tests.faults.stale_reads``: primaries are stopped and cut off while others write; nobody may ever read what is old.

A campaign of nothing but stops of 1 to 6 s and cuts. What makes it bite is the prober: it asks each host directly for the actor that was
changed last, also the host that is stopped or cut off; a read that it sent after others had been told of a change, and that the old
primary answers when it goes on, must not show the time before. The table says for how many events others had changed the partitions of
the target meanwhile, and how many reads the target was sent after that.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys

from rich.console import Console
from rich.table import Table

from tests.faults.campaign import Report, arguments, clean_up_on_sigterm, run_and_report, settings_of
from tests.faults.checkers import Verdict

#: More readers than in a campaign of all kinds.
CALLERS = {"mixed": 5, "hot": 2, "follower": 5}
#: At least this share of events must have been able to show a stale read.
BITES_SHARE_MIN = 0.3


def judge_staleness(report: Report) -> Verdict:
    """No stale read in any event, and enough events in which there could have been one."""
    faults = report.outcome.faults
    possible = [each for each in faults if each.evidence.get("changed_elsewhere") and each.evidence.get("asked_for_it")]
    if not report.outcome.after:
        return Verdict("stale reads", kept=False, numbers={"events": len(faults)}, details=("nothing could be read back",))
    stale = report.of("no stale read")
    wrong = list(stale.details)
    if report.settings.replica_set_size > 1 and len(possible) < BITES_SHARE_MIN * len(faults):
        wrong.append(f"in {len(possible)} of {len(faults)} events only could a read have been stale")
    return Verdict(
        "stale reads",
        stale.kept and not wrong,
        {
            "events": len(faults),
            "could_be_stale": len(possible),
            "reads": stale.numbers["reads"],
            "asked_of_old_primaries": sum(each.evidence.get("asked_for_it", 0) for each in faults),
            "stale": stale.numbers["wrong"],
        },
        tuple(wrong),
    )


def main() -> None:
    parser: argparse.ArgumentParser = arguments(__doc__ or "", kills=0, stops=40, cuts=40, disks=0)
    options = parser.parse_args()
    console = Console()
    clean_up_on_sigterm()
    settings = dataclasses.replace(settings_of(options), callers=CALLERS)
    report = run_and_report(settings, options, console)
    verdict = judge_staleness(report)
    table = Table(title="events in which a read could have been stale")
    for column in (
        "kind",
        "variant",
        "events",
        "others changed its partitions",
        "and it was asked for them",
        "reads it was asked",
        "longest gap s",
    ):
        table.add_column(column)
    for kind, variant in sorted({(each.kind, each.variant) for each in report.outcome.faults}):
        faults = [each for each in report.outcome.faults if (each.kind, each.variant) == (kind, variant)]
        changed = [each for each in faults if each.evidence.get("changed_elsewhere")]
        asked = [each for each in changed if each.evidence.get("asked_for_it")]
        reads = sum(each.evidence.get("asked_for_it", 0) for each in faults)
        gap = max(each.longest_gap_ns for each in faults) / 1e9
        table.add_row(kind, variant, str(len(faults)), str(len(changed)), str(len(asked)), str(reads), f"{gap:.2f}")
    console.print(table)
    console.print(str(verdict), style="green" if verdict else "bold red", highlight=False, markup=False)
    sys.exit(0 if verdict and report else 1)


if __name__ == "__main__":
    main()
