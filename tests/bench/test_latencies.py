import pytest

from bench.latencies import Latencies

MS = 1_000_000


def test_percentiles_are_those_of_the_values_within_three_digits():
    latencies = Latencies.of_ns([number * MS for number in range(1, 1001)])
    assert latencies.count == 1000
    for percent in (50, 90, 99, 99.9):
        assert latencies.percentile_ms(percent) == pytest.approx(percent * 10, rel=0.002)
    assert latencies.slowest_ms == pytest.approx(1000, rel=0.001)


def test_one_slow_call_in_a_million_is_still_the_slowest():
    latencies = Latencies.of_ns([MS] * 999_999 + [7_654 * MS])
    assert latencies.count == 1_000_000
    assert latencies.slowest_ms == pytest.approx(7_654, rel=0.001)
    assert latencies.percentile_ms(99.999) == pytest.approx(1, rel=0.001)


def test_values_outside_the_range_are_counted_at_its_ends():
    latencies = Latencies.of_ns([0, 5, 10**18])
    assert latencies.count == 3
    assert latencies.percentile_ms(1) == pytest.approx(0.001, rel=0.6)
    assert latencies.slowest_ms == pytest.approx(600_000, rel=0.001)


def test_the_stored_form_comes_back_and_merges():
    one, other = Latencies.of_ns([MS, 2 * MS]), Latencies.of_ns([3 * MS])
    back = Latencies.decode(one.encode())
    back.merge(Latencies.decode(other.encode()))
    assert back.count == 3
    assert back.slowest_ms == pytest.approx(3, rel=0.001)


def test_nothing_recorded_is_no_latency_and_an_empty_text():
    empty = Latencies()
    assert (empty.count, empty.slowest_ms, empty.percentile_ms(99), empty.encode(), empty.curve()) == (0, 0.0, 0.0, "", [])
    assert Latencies.decode("").count == 0


def test_what_is_no_histogram_is_refused():
    with pytest.raises(ValueError, match="no HDR histogram"):
        Latencies.decode("never")


def test_a_curve_goes_as_far_as_there_are_calls_to_tell():
    assert [percent for percent, _ in Latencies.of_ns([MS] * 100).curve()][-1] == 99.0
    assert [percent for percent, _ in Latencies.of_ns([MS] * 100_000).curve()][-1] == 99.999
