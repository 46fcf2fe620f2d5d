"""The partition map and the addresses of seeds."""

import pytest

from actorgrid.client.map import PartitionMap
from actorgrid.client.seeds import parse_seeds, show_seed
from actorgrid.errors import ProtocolError
from actorgrid.wire.messages import HostInfo, MapMessage

HOSTS = [HostInfo("a", "10.0.0.1", 1), HostInfo("b", "10.0.0.2", 2)]


def test_a_map_names_the_host_of_each_partition():
    found = PartitionMap.from_message(MapMessage(4, "grid", HOSTS, [1, 0, -1]))
    assert [found.host_of(partition) for partition in range(5)] == [None, HOSTS[1], HOSTS[0], None, None]
    assert found.host_named("b") == HOSTS[1]
    assert found.host_named("c") is None
    assert found.partitions_of(HOSTS[0]) == [2]
    assert found.partition_count == 3


@pytest.mark.parametrize("primaries", [[], [2], [-2], [0, 1, 5]])
def test_a_map_that_cannot_be_is_refused(primaries):
    with pytest.raises(ProtocolError, match="partition map version 4"):
        PartitionMap.from_message(MapMessage(4, "grid", HOSTS, primaries))


def test_seeds_are_hosts_with_ports():
    assert parse_seeds("10.0.0.1:7401, db ,[::1]:7402,[fe80::1],db:7400") == (
        ("10.0.0.1", 7401),
        ("db", 7400),
        ("::1", 7402),
        ("fe80::1", 7400),
    )
    assert show_seed("::1", 7402) == "[::1]:7402"
    assert show_seed("db", 7400) == "db:7400"
