"""What a pod believes of its StatefulSet: one answer that looks like the end of everything ends nothing."""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace

import pytest

from actorgrid.cluster import pod_notices
from actorgrid.cluster.pod_notices import GONE, Notices


@dataclasses.dataclass
class Answers:
    """What Kubernetes says next; the last one again and again."""

    said: list

    def __call__(self, namespace, statefulset):
        answer = self.said.pop(0) if len(self.said) > 1 else self.said[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setattr(pod_notices, "GONE_SURE_S", 0.2)
    monkeypatch.setattr(pod_notices, "_say_whether_there", lambda: True)

    def make(*said):
        monkeypatch.setattr(pod_notices, "_wanted_replicas", Answers(list(said)))
        return Notices(SimpleNamespace(namespace="n", statefulset="s"))

    return make


def test_a_number_is_taken_at_once(asked):
    assert asyncio.run(asked(3).wanted_replicas()) == 3
    assert asyncio.run(asked(0).wanted_replicas()) == 0  # somebody scaled it to nothing
    assert asyncio.run(asked(OSError("away")).wanted_replicas()) is None


def test_gone_is_believed_when_it_goes_on(asked):
    async def main():
        notices = asked(GONE)
        assert await notices.wanted_replicas() is None
        assert await notices.wanted_replicas() is None
        await asyncio.sleep(0.25)
        assert await notices.wanted_replicas() == 0

    asyncio.run(main())


def test_gone_for_a_moment_is_forgotten(asked):
    async def main():
        notices = asked(GONE, 3, GONE)
        assert await notices.wanted_replicas() is None
        await asyncio.sleep(0.25)
        assert await notices.wanted_replicas() == 3
        assert await notices.wanted_replicas() is None

    asyncio.run(main())
