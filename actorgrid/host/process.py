"""What a process that is nothing but a host sets up for itself."""

from __future__ import annotations

import gc
import logging
import queue
import time
from logging.handlers import QueueHandler, QueueListener
from typing import Final

#: Net new objects that bring about a collection of the young ones; after how many of those the next one takes the middle generation too;
#: after how many of *those* one takes everything. So one of the middle generation looks at some 30,000 objects: with 400,000, where many
#: actors come or replicas are built, it took 20 ms, in which nobody is answered. One of everything comes after 120 million new objects.
#: What counts is new objects less those that went, of whatever age: where as many go as come the young grow many before anybody looks at
#: them, so what is kept for a while is kept in objects that the collector does not track (`ReplicaLog._tail`).
COLLECT_AFTER: Final = (10_000, 1, 4_000)
#: Log records that wait to be written; of what does not fit the number is logged.
LOG_QUEUE_MAX: Final = 10_000
LOG_FLUSH_S: Final = 2.0


class BackgroundHandler(QueueHandler):
    """Lets `handler` write in a thread of its own.

    A write to a log file waits for the file system's journal, which the syncs of the store keep busy: in the event loop that held up every
    call of the host for up to 30 ms. `flush`, and so ``logging.shutdown``, waits until everything is written. A process that is killed
    loses its last few records.
    """

    def __init__(self, handler: logging.Handler) -> None:
        self._records: queue.Queue[logging.LogRecord] = queue.Queue(LOG_QUEUE_MAX)
        super().__init__(self._records)
        self._lost = 0
        self._handler = handler
        self._listener = QueueListener(self._records, handler)
        self._listener.start()

    def enqueue(self, record: logging.LogRecord) -> None:
        if self._lost:
            record.msg = f"{record.msg} ({self._lost} records before this one were lost, the log is too slow)"
        try:
            self._records.put_nowait(record)
            self._lost = 0
        except queue.Full:
            self._lost += 1

    def flush(self) -> None:
        deadline_s = time.monotonic() + LOG_FLUSH_S
        while self._records.unfinished_tasks and time.monotonic() < deadline_s:
            time.sleep(0.001)
        self._handler.flush()

    def close(self) -> None:
        self.flush()
        super().close()


def log_to(handler: logging.Handler, form: str) -> None:
    """Everything logged in this process, by us and by actor code, goes to `handler`, in the background."""
    handler.setFormatter(logging.Formatter(form))
    root = logging.getLogger()
    root.addHandler(BackgroundHandler(handler))
    root.setLevel(logging.INFO)


def calm_garbage_collector() -> None:
    """Let Python look for cycles seldom.

    With a host's hundred thousands of live objects a full collection takes some 0.3 s, in which nobody is answered, and by default comes
    every few seconds under load. What a call leaves behind has no cycles; what applications leave is still found, later.
    """
    gc.collect()
    gc.freeze()  # modules and types stay for good and need not be looked through
    gc.set_threshold(*COLLECT_AFTER)
