"""What a replica's core knows of its log without its bytes: positions, epochs, configurations."""

from __future__ import annotations

from collections.abc import Sequence

from actorgrid.replication.configuration import Configuration, Member


class LogIndex:
    """Positions ``start_lsn .. last_lsn`` with the epoch of each, and of the one before the first.

    :ivar start_lsn: the first position that is still in the log
    :ivar last_lsn: the last one; ``start_lsn - 1`` if there is none
    """

    __slots__ = ("_configurations", "_epochs", "last_lsn", "start_lsn")

    def __init__(
        self,
        start_lsn: int,
        last_lsn: int,
        epochs: Sequence[tuple[int, int]],
        configurations: Sequence[tuple[int, Configuration]],
    ) -> None:
        self.start_lsn = start_lsn
        self.last_lsn = last_lsn
        self._epochs = list(epochs)  # (first lsn, epoch) of each run of equal epochs
        self._configurations = list(configurations)

    # -- epochs

    @property
    def last_epoch(self) -> int:
        return self._epochs[-1][1] if self._epochs else 0

    def epoch_at(self, lsn: int) -> int:
        """The epoch of `lsn`; 0 at position 0, -1 where it is not known."""
        if lsn == 0:
            return 0
        if lsn > self.last_lsn:
            return -1
        for first_lsn, epoch in reversed(self._epochs):
            if first_lsn <= lsn:
                return epoch
        return -1

    def hint_below(self, lsn: int, epoch: int) -> int:
        """What to answer a primary whose position `lsn` is of `epoch`, while here it is of another epoch (Ongaro 2014, §3.5).

        The highest position that can be the same in both logs: nothing of a higher epoch can. `lsn` itself if it is of a lower epoch here:
        then the primary's whole run of `epoch` is not here, and where that begins the primary knows.
        """
        end = self.last_lsn
        for first_lsn, each in reversed(self._epochs):
            if first_lsn <= lsn and each <= epoch:
                return min(end, lsn)
            end = first_lsn - 1
        return max(0, end)

    def run_start(self, lsn: int) -> int:
        """Where the run of equal epochs begins that has `lsn`, as far as the log goes back."""
        return next((first_lsn for first_lsn, _ in reversed(self._epochs) if first_lsn <= lsn), 0)

    def append(self, last_lsn: int, epoch: int) -> None:
        """Positions up to `last_lsn` follow, all of `epoch`."""
        if not self._epochs or self._epochs[-1][1] != epoch:
            self._epochs.append((self.last_lsn + 1, epoch))
        self.last_lsn = last_lsn

    def truncate_from(self, lsn: int) -> None:
        """Positions from `lsn` on are gone, and with them the configurations they held."""
        self.last_lsn = lsn - 1
        while self._epochs and self._epochs[-1][0] >= lsn:
            self._epochs.pop()
        while len(self._configurations) > 1 and self._configurations[-1][0] >= lsn:
            self._configurations.pop()

    def drop_before(self, start_lsn: int) -> None:
        """The log begins at `start_lsn` now."""
        self.start_lsn = max(self.start_lsn, start_lsn)
        while len(self._epochs) > 1 and self._epochs[1][0] <= self.start_lsn - 1:
            self._epochs.pop(0)
        while len(self._configurations) > 1 and self._configurations[1][0] <= self.start_lsn - 1:
            self._configurations.pop(0)

    def restart_after(self, lsn: int, epoch: int, configuration: Configuration, configuration_lsn: int) -> None:
        """A copy was installed: everything up to `lsn` is in the state, the log is empty."""
        self.start_lsn = lsn + 1
        self.last_lsn = lsn
        self._epochs = [(lsn, epoch)] if lsn else []
        self._configurations = [(configuration_lsn, configuration)]

    # -- configurations

    @property
    def configuration(self) -> Configuration:
        """The newest one in the log, committed or not: it counts from when it is appended (Ongaro 2014, §4.1)."""
        return self._configurations[-1][1]

    @property
    def configuration_lsn(self) -> int:
        return self._configurations[-1][0]

    @property
    def configuration_epoch(self) -> int | None:
        """The epoch of the newest one's entry, or a later one where the log does not go back so far; None: it is not known."""
        epoch = self.epoch_at(max(self.configuration_lsn, self.start_lsn - 1))
        return epoch if epoch >= 0 else None

    def is_voter(self, member: Member, committed_lsn: int) -> bool:
        """Whether `member` votes in the newest configuration, or in the one before it while the newest is not known to be committed."""
        for lsn, configuration in reversed(self._configurations):
            if member in configuration.voters:
                return True
            if lsn <= committed_lsn:
                break
        return False

    def add_configuration(self, lsn: int, configuration: Configuration) -> None:
        self._configurations.append((lsn, configuration))

    def configurations_between(self, after_lsn: int, last_lsn: int) -> list[tuple[int, Configuration]]:
        """Those with ``after_lsn < lsn <= last_lsn``, for who is sent these positions.

        After a restart only the newest committed one and those behind it are known. Who is sent positions from before gets that one ahead
        of its position: to know a committed configuration early does no harm, to campaign with one that is long past does (I5).
        """
        first_lsn, first = self._configurations[0]
        if last_lsn < first_lsn:
            return [(first_lsn, first)]
        return [(lsn, configuration) for lsn, configuration in self._configurations if after_lsn < lsn <= last_lsn]
