import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench.cli import app
from bench.comparison import compare, show
from bench.results import Faults

from .conftest import make_results, make_row


def judgements(old, new, **machine):
    return [each.judgement for each in compare(make_results(old), make_results(new, **machine)).changes]


@pytest.mark.parametrize(
    ("new", "judgement"),
    [
        ({"cpu": 54.0}, ""),
        ({"cpu": 56.0}, "regression"),
        ({"cpu": 40.0}, "better"),
        ({"rate": 920.0}, ""),
        ({"rate": 880.0}, "regression"),
        ({"rate": 880.0, "cpu": 40.0}, "regression"),
        ({"rate": 880.0, "run": {"steal": 0.1}}, "warning"),
        ({"rate": 880.0, "run": {"others": 0.3}}, "warning"),
        ({"rate": 880.0, "cpu": 70.0, "run": {"steal": 0.1}}, "regression"),
    ],
)
def test_cpu_per_call_counts_always_and_a_rate_only_on_a_quiet_machine(new, judgement):
    assert judgements(make_row(), make_row(**new)) == [judgement]


def test_a_machine_that_was_loaded_before_makes_a_lower_rate_a_warning():
    assert judgements(make_row(), make_row(rate=500.0), load_1m_before=3.0) == ["warning"]


def test_a_lost_change_is_a_regression_whatever_the_figures_are():
    faults = Faults(acknowledged=10, failed=0, lost=1, doubled=0)
    assert judgements(make_row(), make_row(rate=2000.0, cpu=10.0, faults=faults)) == ["regression"]


def test_calls_that_began_to_fail_are_warned_of():
    assert judgements(make_row(), make_row(failed=3)) == ["warning"]
    assert judgements(make_row(failed=3), make_row(failed=3)) == [""]


def test_a_peer_that_became_slower_is_only_a_warning():
    assert judgements(make_row(system="etcd-3"), make_row(system="etcd-3", cpu=99.0)) == ["warning"]


def test_rows_are_compared_with_their_like_only():
    old = make_results(make_row(in_flight=1), make_row(in_flight=64), make_row("read"))
    new = make_results(make_row(in_flight=64, cpu=99.0), make_row(in_flight=64, replicas=1))
    compared = compare(old, new)
    assert [(each.name, each.judgement) for each in compared.changes] == [("write, 3 replicas", "regression")]
    assert len(compared.only_old) == 2
    assert len(compared.only_new) == 1


def test_different_machines_are_said_aloud():
    remarks = compare(make_results(make_row()), make_results(make_row(), cpu="Another", kernel="6.2")).remarks
    assert "DIFFERENT MACHINES: cpu was A CPU, is Another" in remarks
    assert "different: kernel was 6.1, is 6.2" in remarks


def test_an_idle_cost_that_rose_is_warned_of():
    def idle(percent):
        return make_results(make_row("idle", in_flight=0, figures={"core_percent_per_host": percent}))

    assert compare(idle(2.0), idle(3.0)).figures == ("idle: core percent per host 2.00 → 3.00",)
    assert compare(idle(2.0), idle(2.1)).figures == ()


def test_nothing_in_common_is_no_regression():
    console = Console(record=True, width=150, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        show(compare(make_results(make_row()), make_results(make_row("read"))), console)
        assert "no row in common" in console.export_text()


def test_the_command_ends_with_1_if_anything_became_worse(tmp_path):
    paths = [tmp_path / "old.json", tmp_path / "new.json"]
    make_results(make_row()).write(paths[0])
    make_results(make_row(cpu=60.0)).write(paths[1])
    result = CliRunner().invoke(app, ["compare", *map(str, paths)])
    assert result.exit_code == 1
    assert "1 regressions over 10% in 1 rows" in result.stdout
    assert CliRunner().invoke(app, ["compare", str(paths[0]), str(paths[0])]).exit_code == 0


def test_the_command_ends_with_2_on_what_is_no_result(tmp_path):
    path = tmp_path / "no.json"
    path.write_text("[]")
    assert CliRunner().invoke(app, ["compare", str(path), str(path)]).exit_code == 2
    assert CliRunner().invoke(app, ["compare", str(tmp_path / "none.json"), str(path)]).exit_code == 2
