"""The command line where no grid runs."""

import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from actorgrid import __version__
from actorgrid.cli.commands import app
from actorgrid.cluster import grid_file, ports

runner = CliRunner()


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ACTORGRID_ADDRESS", "ACTORGRID_DATA"):
        monkeypatch.delenv(name, raising=False)


def invoke(*args: str):
    return runner.invoke(app, list(args))


def test_version():
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"actorgrid {__version__}\n")


def test_python_dash_m_is_the_same_command():
    result = subprocess.run([sys.executable, "-m", "actorgrid", "--version"], capture_output=True, text=True, timeout=30)
    assert (result.returncode, result.stdout) == (0, f"actorgrid {__version__}\n")


def test_help_names_every_command():
    result = invoke("--help")
    assert result.exit_code == 0
    for command in ("up", "down", "init", "status", "call"):
        assert command in result.stdout


@pytest.mark.parametrize(
    "args",
    [
        ["nosuch"],
        ["up", "--nodes", "x", "--app", "bank"],
        ["up", "--nodes", "0", "--app", "bank"],
        ["up", "--replicas", "0", "--app", "bank"],
        ["up", "--replicas", "8", "--app", "bank"],
        ["up", "--nosuch"],
        ["up"],
        ["call", "Account"],
        ["call", "Account", "alice", "deposit", "--address", "127.0.0.1:x"],
        ["call", "Account", "", "deposit", "--address", "127.0.0.1:1"],
        ["call", "Account", "alice", "deposit", "{not json", "--address", "127.0.0.1:1"],
        ["call", "Account", "alice", "deposit", "--nosuch", "--address", "127.0.0.1:1"],
    ],
)
def test_wrong_usage_exits_2_with_a_reason_and_no_traceback(args):
    result = invoke(*args)
    assert result.exit_code == 2, result.output
    assert result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("args", [["status"], ["status", "--json"], ["init"], ["call", "Account", "alice", "read_balance"]])
def test_without_a_grid_in_the_directory_commands_exit_3(args):
    result = invoke(*args)
    assert result.exit_code == 3
    assert "no grid in .actorgrid" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("args", [["status"], ["init"], ["call", "Account", "alice", "read_balance"]])
def test_when_nothing_listens_commands_exit_3_within_seconds(args):
    began = time.monotonic()
    result = invoke(*args, "--address", f"127.0.0.1:{ports.find_free(1)}")
    assert result.exit_code == 3
    assert "127.0.0.1" in result.stderr
    assert time.monotonic() - began < 8


def test_the_address_may_come_from_the_environment(monkeypatch):
    port = ports.find_free(1)
    monkeypatch.setenv("ACTORGRID_ADDRESS", f"127.0.0.1:{port}")
    result = invoke("call", "Account", "alice", "read_balance", "--timeout", "0.2")
    assert result.exit_code == 3
    assert str(port) in result.stderr


def test_down_without_a_grid_says_so():
    result = invoke("down")
    assert result.exit_code == 1
    assert "no grid runs in" in result.stderr


def test_down_of_a_grid_that_does_not_run_is_done_already(tmp_path):
    data = tmp_path / ".actorgrid"
    grid_file.make_directory(data)
    grid, _ = grid_file.open_grid(data, grid_file.Wish(nodes=1, port=0, app=("bank",)), version="1")
    grid_file.write_grid(data, grid)
    result = invoke("down")
    assert result.exit_code == 0
    assert "no grid runs in" in result.stderr


def test_a_directory_that_holds_something_else_is_refused_with_exit_4(tmp_path):
    (tmp_path / "thesis.tex").touch()
    result = invoke("up", "--app", "bank", "--data", str(tmp_path))
    assert result.exit_code == 4
    assert "holds no grid" in result.stderr


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("100", 100),
        ("-5", -5),
        ("-1.5e3", -1500.0),
        ("true", True),
        ("null", None),
        ('"100"', "100"),
        ('["a", 1]', ["a", 1]),
        ('{"a": 1}', {"a": 1}),
        ("alice", "alice"),
        ("", ""),
        ("NaN", "NaN"),
        ("2024-01-01", "2024-01-01"),
    ],
)
def test_an_argument_is_json_or_a_bare_word(monkeypatch, text, value):
    seen = []

    async def fake(address, actor_type, actor_id, method, values, timeout_s, key):
        seen.append((actor_type, actor_id, method, values))

    monkeypatch.setattr("actorgrid.cli.call._call", fake)
    result = invoke("call", "Account", "alice", "deposit", text, "--address", "127.0.0.1:1")
    assert (result.exit_code, result.stdout) == (0, "null\n"), result.output
    assert seen == [("Account", "alice", "deposit", [value])]


def test_a_missing_server_extra_is_named(tmp_path):
    code = "import sys; sys.modules['rich'] = None\nfrom actorgrid.cli.main import main\nsys.argv = ['actorgrid', 'status']\nmain()"
    code = code.replace("sys.modules['rich'] = None", BLOCK_RICH)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "actorgrid[server]" in result.stderr


BLOCK_RICH = """
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == 'rich' or name.startswith('rich.'):
            raise ModuleNotFoundError(f'No module named {name!r}', name='rich')
sys.meta_path.insert(0, Missing())
"""


def test_a_plain_command_imports_neither_ray_nor_rocksdb():
    code = "import sys; import actorgrid.cli.commands; sys.exit(any(m in sys.modules for m in ('ray', 'rocksdict', 'uvloop')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0
