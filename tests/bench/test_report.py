from html.parser import HTMLParser

import msgspec
import pytest

from bench.latencies import Latencies
from bench.ratios import ratios_of
from bench.report import cards_of, write_report
from bench.results import Faults, FormatError, Mark, Missing, Point, Row, Times

from .conftest import make_results, make_row

PNG = b"\x89PNG\r\n\x1a\n"
CURVE = Latencies.of_ns([number * 10_000 for number in range(1, 2000)]).encode()
ONCE = Faults(acknowledged=500, failed=2, lost=0, doubled=0, longest_gap_ms=120.0)


def rows():
    timeline = [Point(place / 20, 900.0 + place, place == 3, 5.0 + place) for place in range(40)]
    marks = [Mark(0.5, "SIGKILL host-2"), Mark(0.7, "partition 3", "swap")]
    return [
        *(make_row(each, in_flight=level, rate=1000.0 * level, latencies=CURVE) for each in ("write", "read") for level in (1, 64)),
        make_row("write", loop="open", in_flight=0, rate_asked=500.0, load_label="50%", latencies=CURVE),
        make_row("failover", operation="write", faults=ONCE, timeline=timeline, marks=marks, figures={"whole_again_s": 1.5}),
        make_row("write", system="etcd-3", rate=8000.0, cpu=500.0, durability="raft log synced on a <quorum>"),
        make_row("echo", system="echo", rate=128_000.0, cpu=2.0),
    ]


class Page(HTMLParser):
    """What of a page would be fetched from elsewhere, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.images = 0
        self.text = ""

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "href") and not value.startswith(("data:", "#")):
                self.fetched.append(value)
        self.images += tag == "img"

    def handle_data(self, data):
        self.text += data


def test_a_report_is_one_page_that_needs_nothing_else_and_its_plots(tmp_path):
    results = make_results(*rows())
    results.missing.append(Missing("ignite", "no Java here"))
    path = write_report([results], tmp_path / "out")
    page = Page()
    page.feed(path.read_text())
    assert page.fetched == []
    assert page.images == 4
    names = sorted(each.name for each in path.parent.glob("*.png"))
    assert names == ["failover.png", "latency.png", "ratios.png", "throughput.png"]
    assert all((path.parent / name).read_bytes().startswith(PNG) for name in names)
    for words in ("64,000", "no Java here", "etcd-3", "raft log synced on a <quorum>", "2 calls failed", "whole again s"):
        assert words in page.text
    assert "<quorum>" not in path.read_text(), "text is escaped"


def test_two_results_are_compared_and_shown_together(tmp_path):
    old = make_results(make_row(cpu=30.0), created="2026-01-01T00:00:00+00:00")
    new = make_results(make_row(cpu=50.0), make_row("idle", figures={"core_percent_per_host": 2.0}))
    text = write_report([new, old], tmp_path).read_text()
    assert "Since the last result" in text
    assert "regression" in text
    assert "core percent per host 2.00" in text


def test_ratios_are_of_rows_of_one_run_only(tmp_path):
    ours = make_results(make_row(rate=8000.0), created="2026-01-01T00:00:00+00:00")
    theirs = make_results(make_row(system="etcd-3", rate=1.0))
    write_report([ours, theirs], tmp_path)
    assert not (tmp_path / "ratios.png").exists()


def test_rows_without_calls_make_no_plots(tmp_path):
    path = write_report([make_results(make_row("memory", figures={"bytes_per_activation": 700.0}))], tmp_path)
    assert not list(tmp_path.glob("*.png"))
    assert "bytes per activation 700" in path.read_text()


def test_nothing_measured_is_no_report(tmp_path):
    with pytest.raises(FormatError, match="no rows"):
        write_report([make_results()], tmp_path)


def test_cards_say_when_something_was_lost():
    bad = Faults(acknowledged=500, failed=0, lost=3, doubled=1)
    cards = {card.title: card for card in cards_of([make_row(faults=ONCE), make_row("mixed", faults=bad)])}
    assert (cards["Lost or made twice"].value, cards["Lost or made twice"].is_bad) == ("4", True)
    assert "1,000" in cards["Lost or made twice"].under


def test_one_caller_has_a_card_with_what_it_was_measured_beside():
    alone = [
        make_row("one", operation="write", in_flight=1, run={"p50_ms": 0.6}, figures={"p50_of_etcd_put": 0.75}),
        make_row("one", operation="write", system="etcd-3", in_flight=1, run={"p50_ms": 0.8}),
    ]
    (card,) = cards_of(alone)
    assert (card.title, card.value) == ("One caller's write, p50", "0.600")
    assert card.under == "0.75 × etcd put, 50.0 µs of CPU"


def test_rows_with_another_payload_are_not_held_against_each_other():
    assert ratios_of([make_row(payload_bytes=1000), make_row(system="etcd-3", rate=8000.0)]) == []


def test_of_a_peer_that_took_turns_with_the_grid_the_turns_ratio_counts():
    made = [
        make_row(in_flight=64, rate=40_000.0),
        make_row("beside", operation="write", in_flight=64, rate=20_000.0),
        make_row(system="etcd-3", in_flight=64, rate=8000.0, beside={"write": Times(rate=2.5, cpu=3.0, p50=1.5)}),
    ]
    (ratio,) = ratios_of(made)
    assert (ratio.rate, ratio.cpu, ratio.p50) == (2.5, 3.0, 1.5)
    assert ratio.is_beside
    assert ratio.ours.scenario == "beside"
    back = msgspec.json.decode(msgspec.json.encode(made), type=list[Row])
    assert back[2].beside == made[2].beside


def test_ratios_are_taken_at_the_same_concurrency_and_the_echo_is_a_limit_of_both():
    found = {(each.operation, each.system, each.in_flight): each for each in ratios_of(rows())}
    assert set(found) == {("write", "etcd-3", 64), ("write", "echo", 64), ("read", "echo", 64)}
    etcd = found["write", "etcd-3", 64]
    assert (etcd.rate, etcd.cpu, etcd.p50) == (8.0, 10.0, 1.0)
    assert found["read", "echo", 64].rate == 0.5
    assert found["read", "echo", 64].is_limit
