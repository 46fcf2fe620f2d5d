"""``actorgrid recover``, and hosts that are told to end, on plain hosts."""

from __future__ import annotations

import json
import signal
import time

from plain_grid import begin, nodes, run

PARTITIONS = 6
DEADLINE_S = 20.0


def test_nothing_is_begun_anew_without_the_word_for_it(three_hosts):
    address = three_hosts.address(3)
    begin(address)
    assert "no partition" in run("recover", "all", "--address", address).stdout
    assert "served by" in run("recover", "1", "--accept-data-loss", "--address", address, code=4).stdout
    for number in range(10):
        run("call", "Ledger", f"a{number}", "change", "first", "--address", address)
    three_hosts.kill(1)
    three_hosts.kill(2)
    deadline = time.monotonic() + DEADLINE_S
    while len(rows := looked_at(address)) < PARTITIONS + 1:
        assert time.monotonic() < deadline, rows  # who was primary needs a while to be sure that it is not
        time.sleep(0.2)
    assert {row["state"] for row in rows} == {"possible"}
    assert {tuple(row["lost"]) for row in rows} <= {("host-1/1", "host-2/1"), ("host-2/1", "host-1/1")}
    result = run("recover", "all", "--address", address, code=4)
    assert "hosts that do not answer: host-1, host-2" in result.stdout
    assert "--accept-data-loss" in result.output
    assert "a number" in run("recover", "one", "--address", address, code=2).output

    done = run("recover", "all", "--accept-data-loss", "--json", "--address", address)
    assert {json.loads(line)["state"] for line in done.stdout.splitlines()} == {"recovered"}
    for number in range(10):
        run("call", "Ledger", f"a{number}", "change", "second", "--address", address)
    assert "no partition" in run("recover", "all", "--address", address).stdout


def looked_at(address):
    result = run("recover", "all", "--json", "--address", address, code=None)
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def test_a_process_that_gets_sigterm_leaves_and_ends_well(three_hosts):
    address = three_hosts.address(1)
    begin(address)
    process = three_hosts.processes[1]
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 0
    assert nodes(address)["node-2"]["intent"] == "restart"
    # No other can be spared now: it waits, until it is told again.
    process = three_hosts.processes[2]
    process.send_signal(signal.SIGTERM)
    time.sleep(1.0)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(8) == 0
