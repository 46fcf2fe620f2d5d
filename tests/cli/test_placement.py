"""``actorgrid nodes``, ``drain`` and what belongs to them, on plain hosts."""

from __future__ import annotations

import json
import time
from typing import Any

from plain_grid import begin, nodes, run

from actorgrid.cli.placement import EndedMoves

DEADLINE_S = 30.0


def test_a_node_is_drained_and_taken_back(address_of_four: str) -> None:
    address = address_of_four
    begin(address)
    for number in range(30):
        run("call", "Ledger", f"a{number}", "change", "first", "--address", address)
    assert {row["intent"] for row in nodes(address).values()} == {"none"}
    estimate = json.loads(run("drain", "node-2", "--intent", "remove_node", "--estimate", "--json", "--address", address).stdout)
    assert estimate["state"] == "estimate"
    assert estimate["replicas_left"] > 0
    assert estimate["estimate_s"] > 0
    assert nodes(address)["node-2"]["intent"] == "none"

    lines = run("drain", "node-2", "--intent", "remove_node", "--wait", "--json", "--address", address).stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert set(rows[0]) >= {"node", "intent", "state", "replicas_left", "primaries_left", "bytes_left", "estimate_s", "pending"}
    assert rows[-1]["state"] == "done"
    assert nodes(address)["node-2"]["replicas"] == 0
    assert run("nodes", "--address", address).stdout.count("node-") == 4
    assert "build" in run("moves", "--address", address).stdout
    assert "primary" in run("explain", "1", "--address", address).stdout
    assert "replica" in run("explain", "1", "--json", "--address", address).stdout
    assert run("undrain", "node-2", "--address", address).stdout == "nothing is wanted of node-2\n"
    assert "build" in run("rebalance", "--dry-run", "--address", address).stdout
    run("rebalance", "--address", address)
    deadline = time.monotonic() + DEADLINE_S
    while not nodes(address)["node-2"]["replicas"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for number in range(30):
        assert run("call", "Ledger", f"a{number}", "change", "second", "--address", address).stdout == "2\n"


def test_a_drain_that_cannot_go_on_ends_with_the_rule_and_another_exit_code(address: str) -> None:
    begin(address)
    result = run("drain", "node-1", "--intent", "remove_node", "--wait", "--address", address, code=4)
    assert "no_candidate" in result.stdout
    assert "add a node" in result.stdout
    result = run("drain", "node-1", "--intent", "remove_node", "--wait", "--deadline", "1s", "--address", address, code=5)
    assert "the deadline has passed" in result.output
    run("freeze", "--reason", "the quarter ends", "--address", address)
    assert "moves are frozen: the quarter ends" in run("nodes", "--address", address).stdout
    run("unfreeze", "--address", address)


def test_what_makes_no_sense_is_wrong_usage(address: str) -> None:
    begin(address)
    for args, why in (
        (("drain", "node-7", "--intent", "restart"), "there is no node 'node-7'"),
        (("drain", "node-1", "--intent", "explode"), "intent must be one of"),
        (("drain", "node-1", "--intent", "restart", "--deadline", "soon"), "expected seconds"),
        (("explain", "77"), "there is no partition 77"),
    ):
        assert why in run(*args, "--address", address, code=2).output


def test_every_move_is_told_once_it_is_over_in_whatever_order_they_end() -> None:
    def row(number: int, outcome: str = "") -> dict[str, Any]:
        return {"number": number, "outcome": outcome}

    def asked(known: list[dict[str, Any]], since: int) -> list[dict[str, Any]]:
        return [move for move in known if move["number"] > since or not move["outcome"]]  # as a manager answers

    ended = EndedMoves()
    told: list[int] = []
    for known in (
        [],
        [row(11), row(12), row(13)],
        [row(11), row(12, "done"), row(13)],
        [row(11), row(12, "done"), row(13, "done"), row(14)],
        [row(11, "no"), row(12, "done"), row(13, "done"), row(14)],
        [row(11, "no"), row(12, "done"), row(13, "done"), row(14, "done")],
        [row(20), row(21, "done")],  # of the next manager
        [row(20, "done"), row(21, "done")],
        [row(20, "done"), row(21, "done")],
    ):
        told += [move["number"] for move in ended.take(asked(known, ended.since))]
    assert told == [12, 13, 11, 14, 21, 20]
    assert ended.since == 21
