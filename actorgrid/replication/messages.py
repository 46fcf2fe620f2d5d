"""What replicas of one partition say to each other. The frame around it names the hosts and their lives; see `docs/wire.md`.

``sender`` and ``to`` are replica incarnations: what was meant for another one is rejected and counted (I7).
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from actorgrid.replication.configuration import Configuration

Counter = Annotated[int, Meta(ge=0)]
HostNameText = Annotated[str, Meta(max_length=256)]


class Release(Struct, array_like=True, gc=False, frozen=True):
    """The primary of `epoch` on this life of `host` has stopped serving and frees who is fortified by it (Release)."""

    host: HostNameText
    incarnation: Counter
    epoch: Counter


class Append(Struct, array_like=True, tag=1, gc=False):
    """Log records that follow `prev_lsn`; none: only the epoch, the commit position and a new fortification are told.

    Ongaro 2014, figure 3.1, AppendEntries. ``records`` are the bytes of `entry.encode_record`, ``configurations`` those among their
    entries. ``may_wait``: nobody waits for the answer, so writing it and answering may wait a little for company. A host that does not
    know the field answers at once.
    """

    partition: Counter
    to: Counter
    sender: Counter
    epoch: Counter
    prev_lsn: Counter
    prev_epoch: Counter
    committed_lsn: Counter
    records: list[bytes]
    configurations: list[tuple[Counter, Configuration]] = []
    may_wait: bool = False


class AppendAck(Struct, array_like=True, tag=2, gc=False):
    """Everything up to `lsn` is the primary's, and durable here.

    `number`: the support under which this replica is fortified; 0: it is not.
    """

    partition: Counter
    to: Counter
    sender: Counter
    epoch: Counter
    lsn: Counter
    number: Counter


class AppendRejected(Struct, array_like=True, tag=3, gc=False):
    """The log here has no `prev_lsn` of that epoch, or `epoch` is newer than the primary's.

    `hint_lsn`: the highest position worth trying; `prev_lsn` itself: what is there is of an older epoch, nothing of the primary's run of
    equal epochs that has it is here.
    """

    partition: Counter
    to: Counter
    sender: Counter
    epoch: Counter
    prev_lsn: Counter
    hint_lsn: Counter


class VoteRequest(Struct, array_like=True, tag=4, gc=False):
    """May I be primary of `epoch`? ``pre``: would you vote for me; nothing is promised by the answer (Ongaro 2014, §9.6)."""

    partition: Counter
    to: Counter
    sender: Counter
    epoch: Counter
    last_lsn: Counter
    last_epoch: Counter
    pre: bool
    release: Release | None = None


class Vote(Struct, array_like=True, tag=5, gc=False):
    """The answer: `epoch` as asked if granted, else the epoch of who refuses."""

    partition: Counter
    to: Counter
    sender: Counter
    epoch: Counter
    pre: bool
    granted: bool


class CampaignNow(Struct, array_like=True, tag=6, gc=False):
    """The primary hands over: you have everything, ask for votes at once (Ongaro 2014, §3.10, TimeoutNow)."""

    partition: Counter
    to: Counter
    sender: Counter
    epoch: Counter
    release: Release


class ReplicaMissing(Struct, array_like=True, tag=7, gc=False):
    """There is no replica of incarnation `missing` here any more, or never was; one with `successor` may be built (I6)."""

    partition: Counter
    to: Counter
    missing: Counter
    successor: Counter


Message = Append | AppendAck | AppendRejected | VoteRequest | Vote | CampaignNow | ReplicaMissing

encode_message = msgspec.msgpack.Encoder().encode
decode_messages = msgspec.msgpack.Decoder(list[Message]).decode
