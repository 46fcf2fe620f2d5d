"""What a process that is nothing but a host sets up for itself."""

from __future__ import annotations

import gc
from typing import Final

#: Net new objects that bring about a collection of the young ones; how many of those bring about one of the middle generation; and how many
#: of *those* one of everything.
COLLECT_AFTER: Final = (20_000, 20, 200)


def calm_garbage_collector() -> None:
    """Let Python look for cycles seldom.

    With a host's hundred thousands of live objects a full collection takes some 0.3 s, in which nobody is answered, and by default comes
    every few seconds under load. What a call leaves behind has no cycles; what applications leave is still found, later.
    """
    gc.collect()
    gc.freeze()  # modules and types stay for good and need not be looked through
    gc.set_threshold(*COLLECT_AFTER)
