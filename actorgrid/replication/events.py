"""What happens to a replica (events, past tense) and what it wants done (effects, imperative, in this order).

Durable effects carry a ``write_no``. The shell puts them into its next batch, in order, and reports `Synced` with the highest
number that is durable; everything that must not be said before that is said by the core only then (I1, I2).
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from actorgrid.replication.configuration import Configuration, Member
from actorgrid.replication.entry import RecordHead
from actorgrid.replication.messages import Append, Message


class Recovered(Struct, gc=False):
    """Storage was read. What is committed behind `applied_lsn` is not known yet."""

    epoch: int
    voted_for: str
    log_start_lsn: int
    last_lsn: int
    applied_lsn: int
    epochs: Sequence[tuple[int, int]]
    configurations: Sequence[tuple[int, Configuration]]


class EntriesProposed(Struct, gc=False):
    """`count` more entries of this primary stand ready to be appended as one record."""

    count: int


class ConfigurationProposed(Struct, gc=False):
    """Somebody wants this configuration to be the next."""

    configuration: Configuration


class SwapProposed(Struct, gc=False):
    """Somebody wants `target` to be primary; nothing more is proposed here until `StepDown` or `SwapAbandoned`."""

    target: Member


class SwapExpected(Struct, gc=False):
    """`target` will be primary soon, so it should have everything at once; None: the primary stays for the time being."""

    target: Member | None


class Synced(Struct, gc=False):
    """Every write up to `write_no` is durable."""

    write_no: int


class AppendReceived(Struct, gc=False):
    """An append came from this life of `host`; `heads` are those of its records, their checksums verified."""

    message: Append
    heads: Sequence[RecordHead]
    host: str
    incarnation: int


class MessageReceived(Struct, gc=False):
    """Any other message came from this life of `host`."""

    message: Message
    host: str
    incarnation: int


class PeerUp(Struct, gc=False):
    """There is a connection to `host` again; what was under way is lost."""

    host: str


class PeerDown(Struct, gc=False):
    """There is no connection to `host`."""

    host: str


class PeerPaused(Struct, gc=False):
    """`host` reads more slowly than it is sent to: send it nothing new (I16)."""

    host: str


class PeerResumed(Struct, gc=False):
    """`host` has read what it was sent."""

    host: str


class SupportChanged(Struct, gc=False):
    """`host` supports this one under a new number: what was fortified under the old one must be fortified anew."""

    host: str


class HostDied(Struct, gc=False):
    """The process of this life of `host` is known to have ended."""

    host: str
    incarnation: int


class TimePassed(Struct, gc=False):
    """`Replica.wake_ns` has passed."""


class CommitIdle(Struct, gc=False):
    """Nothing was appended for a while: tell the secondaries what is committed."""


class LogSent(Struct, gc=False):
    """What `SendFromLog` asked for was sent, up to `last_lsn`."""

    to: Member
    last_lsn: int


class CopyEnded(Struct, gc=False):
    """The copy to `to` is installed there up to `lsn`; 0: it came to nothing."""

    to: Member
    lsn: int


class CopyInstalled(Struct, gc=False):
    """A copy of the state at `lsn` has taken the place of everything that was here, and is durable."""

    lsn: int
    epoch: int
    configuration: Configuration
    configuration_lsn: int


class LogStartMoved(Struct, gc=False):
    """The log begins at `start_lsn` now."""

    start_lsn: int


class StorageFailed(Struct, gc=False):
    """The store cannot say what is durable: this replica's duty ends (I12)."""

    why: str


Event = (
    EntriesProposed
    | AppendReceived
    | Synced
    | MessageReceived
    | TimePassed
    | CommitIdle
    | LogSent
    | SupportChanged
    | PeerUp
    | PeerDown
    | PeerPaused
    | PeerResumed
    | HostDied
    | Recovered
    | LogStartMoved
    | ConfigurationProposed
    | SwapProposed
    | SwapExpected
    | CopyEnded
    | CopyInstalled
    | StorageFailed
)


# -- effects


class SaveEpoch(Struct, gc=False):
    """Make epoch and vote durable; nothing may be said in that epoch before (I1)."""

    write_no: int
    epoch: int
    voted_for: str


class TruncateLog(Struct, gc=False):
    """Drop the log from `from_lsn` on: it is another primary's, and was never committed (I3)."""

    from_lsn: int


class AppendRecords(Struct, gc=False):
    """Append the records of the message that is being handled, without the first `skip`."""

    write_no: int
    skip: int


class AppendProposed(Struct, gc=False):
    """Append the proposed entries at `first_lsn` and following, as one record."""

    write_no: int
    epoch: int
    first_lsn: int
    count: int


class AppendFirst(Struct, gc=False):
    """Append one empty entry, the first of `epoch` (I4)."""

    write_no: int
    epoch: int
    lsn: int


class AppendConfiguration(Struct, gc=False):
    """Append an entry with `configuration`, which counts from now on (I5)."""

    write_no: int
    epoch: int
    lsn: int
    configuration: Configuration


class Send(Struct, gc=False):
    """Send `message` to `host`. It may get lost."""

    host: str
    message: Message


class SendAppend(Struct, gc=False):
    """Send `to` exactly the records in ``(prev_lsn, last_lsn]``; none if they are equal. `may_wait`: nobody waits for the answer."""

    to: Member
    epoch: int
    prev_lsn: int
    prev_epoch: int
    last_lsn: int
    committed_lsn: int
    may_wait: bool = False


class SendFromLog(Struct, gc=False):
    """Send `to` about one chunk of the log behind `prev_lsn`, and report `LogSent`."""

    to: Member
    epoch: int
    prev_lsn: int
    prev_epoch: int
    committed_lsn: int


class StartCopy(Struct, gc=False):
    """The log no longer reaches back to what `to` lacks: send it a copy of the state, and report `CopyEnded`."""

    to: Member


class Commit(Struct, gc=False):
    """Entries up to `lsn` are committed: apply them in order; a primary answers their callers."""

    lsn: int


class Serve(Struct, gc=False):
    """The first entry of the own epoch is committed: calls may be admitted."""

    epoch: int


class Follow(Struct, gc=False):
    """`host` is primary of `epoch`."""

    host: str
    epoch: int


class StepDown(Struct, gc=False):
    """Admit nothing more; answer what is pending as in doubt, what is held as moved (I17).

    `successor`: the host that was asked to go on, or empty.
    """

    why: str
    successor: str = ""


class SwapAbandoned(Struct, gc=False):
    """The hand-over did not come about: go on serving."""

    why: str


class ConfigurationRefused(Struct, gc=False):
    """`configuration` cannot be the next one now."""

    configuration: Configuration
    why: str


class ConfigurationCommitted(Struct, gc=False):
    """`configuration` is on a write quorum; the next one may be proposed."""

    configuration: Configuration


class ReplicaLost(Struct, gc=False):
    """The voter `member` has lost its data and never returns; `successor` can be built in its place (I6)."""

    member: Member
    successor: Member


Effect = (
    SaveEpoch
    | TruncateLog
    | AppendRecords
    | AppendProposed
    | AppendFirst
    | AppendConfiguration
    | Send
    | SendAppend
    | SendFromLog
    | StartCopy
    | Commit
    | Serve
    | Follow
    | StepDown
    | SwapAbandoned
    | ConfigurationRefused
    | ConfigurationCommitted
    | ReplicaLost
)
