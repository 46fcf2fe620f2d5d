"""Troubles that are looked at again and again, and told once."""

from __future__ import annotations

import logging


def say(log: logging.Logger, said: dict[str, str], subject: str, trouble: str) -> None:
    """Log a trouble once, and its end; empty: there is none.

    :param said: by subject: what was logged and is not over
    """
    before = said.pop(subject, "")
    if trouble:
        said[subject] = trouble
        if not before:
            log.warning("%s", trouble)
    elif before:
        log.info("over: %s", before)
