"""Work sent to another process by name, without Ray."""

import pytest
from host_actors import Caller
from host_harness import one_grid, run

from actorgrid.errors import ActorError


def test_offloaded_work_comes_back_as_a_result_or_an_error_and_a_dead_process_spoils_nothing(tmp_path):
    async def main():
        async with one_grid(tmp_path) as (_, client):
            caller = client.get(Caller, "c")
            assert await caller.square_elsewhere(12) == 144
            with pytest.raises(ActorError, match="LookupError: no 3") as caught:
                await caller.fail_elsewhere(3)
            assert "host_actors.py" in str(caught.value)
            with pytest.raises(ActorError, match="top level"):
                await caller.offload_lambda()
            with pytest.raises(ActorError, match="process died"):
                await caller.die_elsewhere()
            assert await caller.square_elsewhere(5) == 25

    run(main, 60, problems_allowed=True)
