"""The log of a host: written in the background, whole at the end, and never in the way."""

from __future__ import annotations

import logging
import threading

from actorgrid.host.process import LOG_QUEUE_MAX, BackgroundHandler


class Slow(logging.Handler):
    """Writes nothing until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may = threading.Event()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        assert self.may.wait(10)
        self.lines.append(self.format(record))


def record_of(number: int) -> logging.LogRecord:
    return logging.LogRecord("a", logging.INFO, __file__, 1, "number %d", (number,), None)


def test_who_logs_does_not_wait_and_the_end_does():
    slow = Slow()
    handler = BackgroundHandler(slow)
    for number in range(100):
        handler.handle(record_of(number))
    assert slow.lines == []
    slow.may.set()
    handler.close()
    assert slow.lines == [f"number {number}" for number in range(100)]


def test_what_does_not_fit_is_told_of():
    slow = Slow()
    handler = BackgroundHandler(slow)
    for number in range(LOG_QUEUE_MAX + 101):  # one of them may be with the writer
        handler.handle(record_of(number))
    slow.may.set()
    handler.flush()
    handler.handle(record_of(0))
    handler.close()
    lost = LOG_QUEUE_MAX + 101 - (len(slow.lines) - 1)
    assert 100 <= lost <= 101
    assert f"({lost} records before this one were lost" in slow.lines[-1]
