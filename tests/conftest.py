"""Options and marks of the whole suite."""

from __future__ import annotations

import secrets
import signal
import socket
from collections.abc import Iterator

import hypothesis
import pytest

import actorgrid

#: `make test` always tries the same: what a new seed finds belongs to whoever searched, not to whoever came by (`make search`).
SEED = 1


def _seed(text: str) -> int:
    return secrets.randbelow(1 << 32) if text == "new" else int(text)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed", type=_seed, default=SEED, help=f"seed of randomised tests, or `new`; default: {SEED}; printed when one fails"
    )


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.register_profile("same", derandomize=True)
    if config.getoption("--seed") == SEED:
        hypothesis.settings.load_profile("same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if actorgrid.__compiled__:
        for item in items:
            if "pure" in item.keywords:
                item.add_marker(pytest.mark.skip("the build is compiled"))


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed of randomised tests: {config.getoption('--seed')} (repeat with --seed=N)"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    outcome = yield
    report = outcome.get_result()
    if report.failed and call.when == "call":
        report.sections.append(("repeat with", f"pytest '{item.nodeid}' --seed={item.config.getoption('--seed')}"))


@pytest.fixture
def unused_port() -> int:
    """A port nobody listens on, outside the range from which the kernel gives ports to outgoing connections."""
    for port in secrets.SystemRandom().sample(range(20_000, 32_000), 200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise AssertionError("200 ports in a row are in use")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A process that was started in the background ignores SIGINT unless it says otherwise, and so do its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
