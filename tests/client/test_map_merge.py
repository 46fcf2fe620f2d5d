"""Maps of several hosts become one: partition by partition, by epoch."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorgrid.ambient import new_client_id
from actorgrid.client.caller import Caller
from actorgrid.client.map import PartitionMap, parse_host
from actorgrid.errors import ProtocolError
from actorgrid.settings import ClientSettings, WireSettings
from actorgrid.wire.messages import HostInfo, MapMessage

PORTS = {"a": 1, "b": 2, "c": 3, "d": 4}


def info(name, port=None):
    return HostInfo(name, f"10.0.0.{PORTS[name]}", port or PORTS[name])


def a_map(primaries, epochs=(), secondaries=(), *, version=1, hosts="abc"):
    """Hosts by one letter each; ``-`` is no primary; secondaries are one word for each partition."""
    index = {name: i for i, name in enumerate(hosts)} | {"-": -1}
    message = MapMessage(
        version, "grid", [info(name) for name in hosts], [index[each] for each in primaries], list(epochs),
        [[index[each] for each in word] for word in secondaries],
    )  # fmt: skip
    return PartitionMap.from_message(message)


def primaries_of(found):
    hosts = [found.host_of(partition) for partition in range(1, found.partition_count + 1)]
    return "".join(host.name if host is not None else "-" for host in hosts)


def secondaries_of(found):
    return ["".join(host.name for host in found.secondaries_of(partition)) for partition in range(1, found.partition_count + 1)]


def test_of_each_partition_the_entry_with_the_higher_epoch_counts_and_no_map_is_newer_as_a_whole():
    one, other = a_map("aabb", [5, 1, 2, 9], version=9), a_map("bbaa", [4, 2, 3, 1], version=1)
    for merged in (one.merged_with(other), other.merged_with(one)):
        assert primaries_of(merged) == "abab"
        assert merged.epochs == (5, 2, 3, 9)
        assert merged.version == 9


def test_of_equal_epochs_the_known_entry_stays_unless_it_knows_no_primary():
    known = a_map("a-a", [3, 3, 3])
    assert primaries_of(known.merged_with(a_map("bb-", [3, 3, 3]))) == "aba"
    assert known.merged_with(a_map("b-b", [3, 3, 3], version=1)) is known


def test_a_higher_epoch_without_a_primary_counts_too():
    merged = a_map("a", [3], ["bc"]).merged_with(a_map("-", [4]))
    assert primaries_of(merged) == "-"
    assert sorted(secondaries_of(merged)[0]) == ["a", "b", "c"], "whoever leads, these still are its replicas"
    assert primaries_of(merged.merged_with(a_map("c", [4], ["ab"]))) == "c"


def test_hosts_are_matched_by_name_whatever_their_order():
    merged = a_map("ab", [1, 1], ["b", "c"], hosts="abc").merged_with(a_map("db", [2, 1], ["ca", ""], hosts="dbca"))
    assert primaries_of(merged) == "db"
    assert secondaries_of(merged) == ["ca", "c"]
    assert merged.host_named("d") == info("d")


def test_the_newer_list_of_hosts_says_where_a_host_is_whoever_has_the_higher_epochs():
    old = PartitionMap(4, "grid", (info("a"), info("b")), (0, 1), (9, 9))
    moved = PartitionMap(5, "grid", (info("b", 77), info("a")), (1, 0), (1, 1))
    for merged in (old.merged_with(moved), moved.merged_with(old)):
        assert merged.host_of(2) == info("b", 77)
        assert merged.host_of(1) == info("a")
        assert merged.epochs == (9, 9)
        assert merged.version == 5


def test_a_host_that_left_the_list_goes_when_no_partition_needs_it():
    known = a_map("ab", [1, 1], ["c", ""], hosts="abc")
    without = known.merged_with(a_map("aa", [1, 0], version=2, hosts="a"))
    assert [host.name for host in without.hosts] == ["a", "b"], "b is still a primary, as far as we know"
    assert secondaries_of(without) == ["", ""]
    gone = without.merged_with(a_map("aa", [2, 2], version=3, hosts="a"))
    assert [host.name for host in gone.hosts] == ["a"]


def test_equally_new_lists_are_united_and_an_older_one_adds_what_its_entries_need():
    known = a_map("aa", [1, 1], version=5, hosts="a")
    assert known.merged_with(a_map("bb", version=5, hosts="bc")) is known
    assert [host.name for host in known.merged_with(a_map("bb", [1, 1], version=5, hosts="bc")).hosts] == ["a", "b", "c"]
    assert [host.name for host in known.merged_with(a_map("bb", [1, 2], version=4, hosts="bc")).hosts] == ["a", "b"]
    assert known.merged_with(a_map("bb", [1, 1], version=4, hosts="bc")) is known


def test_secondaries_come_with_their_entry_and_the_last_ones_heard_count_within_an_epoch():
    known = a_map("aa", [2, 2], ["bc", "bc"], hosts="abcd")
    assert secondaries_of(known.merged_with(a_map("ab", [2, 3], ["cd", "ac"], hosts="abcd"))) == ["cd", "ac"]
    assert known.merged_with(a_map("aa", [1, 1], ["d", "d"], hosts="abcd")) is known
    assert known.merged_with(a_map("aa", [2, 2], ["cb", "cb"], hosts="abcd")) is known, "they have no order"
    assert known.merged_with(a_map("aa", [2, 2], hosts="abcd")) is known, "a host that says nothing of them knows nothing"
    assert secondaries_of(known.merged_with(a_map("ba", [3, 2], hosts="abcd"))) == ["ac", "bc"]


def test_maps_without_epochs_count_as_a_whole_and_by_version():
    known = a_map("ab", version=3)
    assert known.merged_with(a_map("ba", version=3)) is known
    newer = a_map("-a", version=4, hosts="a")
    assert known.merged_with(newer) is newer
    assert primaries_of(known.merged_with(a_map("bb", [0, 1], version=1))) == "ab"
    with_epochs = a_map("ab", [2, 2], version=1)
    assert primaries_of(with_epochs.merged_with(a_map("bb", version=7))) == "ab", "a release that knows no epochs undoes none"


def test_merging_changes_neither_map():
    one, other = a_map("aa", [1, 1], ["b", "b"]), a_map("bc", [2, 0], ["a", "a"], version=2)
    before = [(each.version, each.hosts, each.primaries, each.epochs, each.secondaries) for each in (one, other)]
    assert one.merged_with(other) is not one
    assert [(each.version, each.hosts, each.primaries, each.epochs, each.secondaries) for each in (one, other)] == before


def test_what_is_missing_at_the_end_of_a_message_is_not_known():
    found = PartitionMap.from_message(MapMessage(1, "grid", [info("a"), info("b")], [0, 1, 0], [7], [[1]]))
    assert found.epochs == (7, 0, 0)
    assert secondaries_of(found) == ["b", "", ""]
    assert [found.epoch_of(partition) for partition in (0, 1, 2, 4)] == [0, 7, 0, 0]
    assert found.secondaries_of(0) == found.secondaries_of(4) == []


@pytest.mark.parametrize(("epochs", "secondaries", "hosts", "words"), [
    ([1, 2, 3], [], "ab", "3 of 2 partitions"),
    ([], [[], [], []], "ab", "3 of 2 partitions"),
    ([], [[2]], "ab", "host 2 of 2"),
    ([], [[0, -1]], "ab", "host -1 of 2"),
    ([], [], "aba", "a host twice"),
])  # fmt: skip
def test_a_map_whose_new_fields_cannot_be_is_refused(epochs, secondaries, hosts, words):
    message = MapMessage(4, "grid", [info(name) for name in hosts], [0, 1], epochs, secondaries)
    with pytest.raises(ProtocolError, match=f"partition map version 4 .*{words}"):
        PartitionMap.from_message(message)


def test_a_hint_becomes_the_entry_of_its_partition():
    known = a_map("ab", [1, 1], ["bc", "a"])
    told = known.with_primary(1, info("b"), 4)
    assert primaries_of(told) == "bb"
    assert told.epochs == (4, 1)
    assert secondaries_of(told) == ["ac", "a"]
    assert told.with_primary(2, info("d"), 2).host_of(2) == info("d")
    assert primaries_of(known) == "ab"


@pytest.mark.parametrize(("text", "expected"), [
    ("node-1@10.0.0.1:7400", HostInfo("node-1", "10.0.0.1", 7400)),
    ("node-1@::1:7400", HostInfo("node-1", "::1", 7400)),
    ("node-1@[::1]:7400", HostInfo("node-1", "::1", 7400)),
    ("", None), ("node-1", None), ("@h:1", None), ("n@:1", None), ("n@h", None), ("n@h:", None), ("n@h:0", None), ("n@h:70000", None),
    ("n@h:x", None), ("n@h:-1", None), ("n@h:٣", None), ("n@" + "h" * 600 + ":1", None),
])  # fmt: skip
def test_the_text_of_a_hint_names_a_host_or_nothing(text, expected):
    assert parse_host(text) == expected


def views_of_one_history():
    """What several hosts may send of one grid: in each epoch a partition has one primary, and each host knows one epoch of it."""
    history = st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=6), min_size=3, max_size=3)

    def view_of(history):
        epochs = st.tuples(*(st.integers(1, len(primaries)) for primaries in history))
        return st.builds(
            lambda epochs, version, hosts: a_map(
                [history[i][epoch - 1] for i, epoch in enumerate(epochs)], epochs, version=version, hosts="".join(hosts)
            ),
            epochs,
            st.integers(1, 3),
            st.permutations("abcd"),
        )

    return history.flatmap(lambda history: st.tuples(st.just(history), st.lists(view_of(history), min_size=1, max_size=6)))


@given(views_of_one_history(), st.randoms(use_true_random=False))
def test_whatever_the_order_of_maps_the_newest_primary_of_each_partition_is_known_and_no_epoch_goes_back(given_, rng):
    history, views = given_
    rng.shuffle(views)
    known = views[0]
    for view in views[1:]:
        merged = known.merged_with(view)
        assert all(new >= old for new, old in zip(merged.epochs, known.epochs, strict=True))
        known = merged
    assert known.epochs == tuple(max(view.epochs[i] for view in views) for i in range(3))
    assert list(primaries_of(known)) == [history[i][known.epochs[i] - 1] for i in range(3)]
    for view in views:
        assert known.merged_with(view) is known


def test_a_caller_says_whether_a_map_told_it_anything():
    from stand_in import run

    async def main():
        caller = Caller(client_id=new_client_id(), settings=ClientSettings(), wire=WireSettings(), rng=random.Random(1), role="host")
        known, older = a_map("aa", [3, 3], ["b", ""]), a_map("bb", [2, 4], version=1)
        assert caller.set_map(known)
        assert not caller.set_map(known)
        assert not caller.set_map(a_map("bb", [2, 2], version=1))
        assert caller.set_map(older)
        assert not caller.set_map(older)
        assert primaries_of(caller.partition_map) == "ab"
        with pytest.raises(ProtocolError, match="3 partitions, the grid was created with 2"):
            caller.set_map(a_map("aaa", [0, 0, 0], version=1))
        await caller.close()

    run(main)
