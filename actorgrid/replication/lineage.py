"""Data loss that an operator has accepted: a partition begun anew from one replica, and how everybody tells it from what was before.

The upper half of an epoch is the partition's *lineage*: its data-loss number (Service Fabric's epochs begin with one likewise) and a number
drawn by lot, so that two operators who begin one partition anew out of each other's sight make two lineages, of which one wins. Whatever
belongs to a lower one is history: however often replicas of it elect each other, their epochs stay below. Positions go on behind a gap, so
that what a client knew of the old log is never taken for something of the new one.
"""

from __future__ import annotations

from typing import Final

_LINEAGE_SHIFT: Final = 32
_NUMBER_SHIFT: Final = 48
#: Lots are below this.
LOTS: Final = 1 << (_NUMBER_SHIFT - _LINEAGE_SHIFT)
#: More entries than any replica of the old log can have had beyond the one that is left.
LSN_GAP: Final = 1 << 32


def lineage(epoch: int) -> int:
    """0 for what has never lost anything; the higher one counts."""
    return epoch >> _LINEAGE_SHIFT


def data_loss_number(epoch: int) -> int:
    """How often data loss was accepted before this epoch."""
    return epoch >> _NUMBER_SHIFT


def first_epoch_after_loss(epoch: int, lot: int) -> int:
    """An epoch above all that can follow `epoch` without another loss."""
    return (data_loss_number(epoch) + 1 << _NUMBER_SHIFT) + (lot << _LINEAGE_SHIFT)
