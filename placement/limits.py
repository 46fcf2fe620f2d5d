"""Thresholds, budgets and patience of placement."""

from __future__ import annotations

from msgspec import Struct


class Limits(Struct, frozen=True):
    """What placement may do at a time, and from when on it does something at all.

    :ivar replica_restart_wait_s: a host that is down for less gets its replicas back as they are: it is likely to return
    :ivar quiet_s: after a host came or went, nothing is moved for balance's sake for so long
    :ivar builds_per_host_max: replicas being built on one host, and copied from one primary's host, at a time
    :ivar builds_max: in all
    :ivar swaps_max: primaries that change hosts at a time
    :ivar swaps_per_host_max: of those, from one host, and to one: callers of a partition that is swapped wait, and so does who calls them
    :ivar load_threshold: load is looked at from this part above the mean on
    :ivar load_gain_min: part of the mean by which a move for load's sake must lower the difference of two hosts
    :ivar bytes_floor: mean bytes a host below which nothing is moved for bytes' sake
    :ivar calls_floor_per_s: mean calls/s a host below which nothing is moved for calls' sake
    :ivar copy_bytes_per_s: expected of one copy, for estimates
    :ivar build_overhead_s: expected of one build beyond its bytes, for estimates
    :ivar swap_s: expected of one swap, for estimates
    """

    replica_restart_wait_s: float = 60.0
    quiet_s: float = 10.0
    builds_per_host_max: int = 1
    builds_max: int = 256
    swaps_max: int = 16
    swaps_per_host_max: int = 1
    load_threshold: float = 0.25
    load_gain_min: float = 0.10
    bytes_floor: float = 64.0 * (1 << 20)
    calls_floor_per_s: float = 1000.0
    copy_bytes_per_s: float = 32.0 * (1 << 20)
    build_overhead_s: float = 0.2
    swap_s: float = 0.1
