"""The one-member core against its golden scenarios: a command, ``----``, the effects; a blank line between steps.

A scenario says what must come out, so it is written by hand from the design, never recorded.
"""

import re
from pathlib import Path

import pytest

from actorgrid.errors import InvariantViolation
from actorgrid.ids import PartitionId
from actorgrid.replication import replica as core

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))
EVENTS = {
    "recovered": core.Recovered,
    "epoch_synced": core.EpochSynced,
    "proposed": core.EntriesProposed,
    "log_synced": core.LogSynced,
    "storage_failed": core.StorageFailed,
}


def event_of(command):
    name, *arguments = command.split(maxsplit=1)
    fields = dict(part.split("=") for part in arguments[0].split()) if arguments else {}
    return EVENTS[name](**{key: int(value) if value.isdigit() else value for key, value in fields.items()})


def shown(effect):
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(effect).__name__).lower()
    return " ".join([name, *(f"{field}={getattr(effect, field)}" for field in effect.__dataclass_fields__)])


def state_of(replica):
    return (
        f"role={replica.role} epoch={replica.epoch} last_lsn={replica.last_lsn} committed_lsn={replica.committed_lsn} "
        f"serving={'yes' if replica.serving else 'no'}"
    )


def steps_of(text):
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for step in re.split(r"\n\s*\n", lines.strip()):
        command, _, expected = step.partition("\n----")
        yield command.strip(), expected.strip()


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path):
    replica = core.Replica(PartitionId(12))
    seen: list[tuple[bool, bool]] = []  # of violations: they tell the whole story, and where
    for now_ns, (command, expected) in enumerate(steps_of(path.read_text())):
        if command == "state":
            got = state_of(replica)
        else:
            try:
                got = "\n".join(map(shown, replica.step(event_of(command), now_ns))) or "nothing"
            except InvariantViolation as violation:
                got = f"violation {violation.invariant}"
                story, text = violation.story, str(violation)
                seen.append((story == replica.story(), "partition 12" in text))
        assert got == expected, f"{path.stem}: {command}"
    assert all(told == (True, True) for told in seen)


def test_there_is_a_scenario_for_each_situation():
    assert len(SCENARIOS) >= 6


def test_the_story_holds_the_last_events_only():
    replica = core.Replica(PartitionId(1))
    replica.step(core.Recovered(0, 0, 0), 0)
    replica.step(core.EpochSynced(1), 1)
    for lsn in range(1, 100):
        replica.step(core.LogSynced(lsn), lsn)
        replica.step(core.EntriesProposed(1), lsn)
    assert len(replica.story()) == core.STORY_LENGTH
    assert "EntriesProposed" in replica.story()[-1]
