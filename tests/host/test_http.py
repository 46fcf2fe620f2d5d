"""Operators' verbs over HTTP: the answers of the command line, errors a program can read, and no door for web pages."""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
import pytest
from host_harness import PARTITIONS, free_port, make_config, run, until
from placement_harness import Grid

from actorgrid.errors import SettingsError
from actorgrid.host.host import Host
from actorgrid.settings import HostSettings

OFFSET = 7
SETTINGS = HostSettings(placement_quiet_s=0.3, http_port_offset=OFFSET)


@contextlib.asynccontextmanager
async def grid_over_http(path):
    made = Grid(path, 3, settings=SETTINGS)
    try:
        await made.begin()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{made.ports[0] + OFFSET}") as session:
            await until_known(session)
            yield made, session
    finally:
        await made.stop_all()


async def until_known(session):
    for _ in range(100):
        status, answer = await asked(session, "GET", "/v1/nodes")
        if status == 200 and len(answer["nodes"]) == 3 and all(row["state"] == "up" for row in answer["nodes"]):
            return
        assert status in (200, 503), answer
        await asyncio.sleep(0.1)
    raise AssertionError(answer)


async def asked(session, method, path, body=None, **options):
    async with session.request(method, path, json=body, **options) as response:
        assert response.content_type == "application/json"
        return response.status, await response.json()


def test_a_drain_from_its_wish_to_its_end(tmp_path):
    async def main():
        async with grid_over_http(tmp_path) as (made, session):
            assert await asked(session, "GET", "/livez") == (200, {"state": "serving"})
            assert (await asked(session, "GET", "/readyz"))[0] == 200
            status, estimate = await asked(session, "POST", "/v1/nodes/node-2/drain", {"intent": "restart", "estimate": True})
            assert (status, estimate["state"]) == (200, "estimate")
            status, row = await asked(session, "POST", "/v1/nodes/node-2/drain", {"intent": "restart", "deadline_s": 60})
            assert (status, row["intent"]) == (200, "restart")
            for _ in range(100):
                _, row = await asked(session, "GET", "/v1/nodes/node-2/drain")
                if row["state"] == "done":
                    break
                await asyncio.sleep(0.05)
            assert row["state"] == "done"
            assert not any(partition.serving for partition in made.hosts[1].partitions.values())
            status, answer = await asked(session, "GET", "/v1/partitions/1")
            assert status == 200
            assert answer["lines"]
            assert any(move["what"] == "swap" for move in (await asked(session, "GET", "/v1/moves"))[1]["moves"])
            assert await asked(session, "DELETE", "/v1/nodes/node-2/drain") == (200, {"node": "node-2", "intent": "none"})
            assert (await asked(session, "POST", "/v1/freeze", {"reason": "a test"}))[1] == {"frozen_why": "a test"}
            assert (await asked(session, "GET", "/v1/nodes"))[1]["frozen_why"] == "a test"
            assert (await asked(session, "DELETE", "/v1/freeze"))[1] == {"frozen_why": ""}
            assert (await asked(session, "POST", "/v1/rebalance", {"dry_run": True}))[0] == 200
            assert (await asked(session, "GET", "/v1/status"))[1]["host"]["name"] == "host-1"
            rows = (await asked(session, "GET", "/v1/partitions"))[1]["partitions"]
            assert [row["partition"] for row in rows] == list(range(PARTITIONS + 1))
            assert all(sorted(row["voters"]) == ["host-1", "host-2", "host-3"] and row["primary"] in row["voters"] for row in rows)
            async with session.get("/") as page:
                assert page.content_type == "text/html"
                assert "default-src 'none'" in page.headers["Content-Security-Policy"]
                assert "/v1/partitions" in await page.text()

    run(main, timeout_s=30)


def test_what_is_wrong_is_said_in_words_and_numbers(tmp_path):
    async def main():
        async with grid_over_http(tmp_path) as (made, session):
            status, problem = await asked(session, "POST", "/v1/nodes/node-2/drain", {"intent": "sleep"})
            assert (status, problem["error"]) == (400, "RequestError")
            assert "pause, restart, remove_data, remove_node" in problem["message"]
            assert (await asked(session, "POST", "/v1/nodes/node-9/drain", {"intent": "restart"}))[0] == 404
            assert (await asked(session, "GET", "/v1/partitions/99"))[0] == 404
            assert (await asked(session, "GET", "/v2/nodes"))[0] == 404
            assert (await asked(session, "PUT", "/v1/nodes"))[0] == 405
            async with session.post("/v1/freeze", data=b"{") as response:
                assert response.status == 400
                assert "JSON object" in (await response.json())["message"]
            async with session.post("/v1/freeze", data=b"[1]") as response:
                assert response.status == 400
            async with session.post("/v1/freeze", data=b'"' + b"x" * 100_000) as response:
                assert response.status == 413
            for nonsense in (1e300, -1, "soon"):
                status, _ = await asked(session, "POST", "/v1/nodes/node-2/drain", {"intent": "restart", "deadline_s": nonsense})
                assert status == 400
            # A host says of itself that it leaves; nobody else may say so for it.
            await asked(session, "POST", "/v1/nodes/node-3/drain", {"intent": "restart", "by": "host-3"})
            await asyncio.sleep(0.6)
            assert {row["intent"] for row in (await asked(session, "GET", "/v1/nodes"))[1]["nodes"]} == {"none", "restart"}
            await made.stop(2)
            await made.stop(1)
            await until(lambda: not any(partition.serving for partition in made.hosts[0].partitions.values()), 10)
            for _ in range(40):
                async with session.get("/v1/nodes") as response:
                    if response.status == 503:
                        break
                await asyncio.sleep(0.1)
            assert response.status == 503
            assert int(response.headers["Retry-After"]) >= 1

    run(main, timeout_s=40)


def test_web_pages_are_not_answered(tmp_path):
    async def main():
        async with grid_over_http(tmp_path) as (_, session):
            for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example:80"}):
                status, problem = await asked(session, "POST", "/v1/freeze", {"reason": "evil"}, headers=headers)
                assert (status, problem["error"]) == (403, "AccessDeniedError")
            for host in ("localhost", "127.0.0.1:80", "[::1]:80", "[::1]"):
                assert (await asked(session, "GET", "/v1/nodes", headers={"Host": host}))[0] == 200
            assert (await asked(session, "GET", "/v1/nodes"))[1]["frozen_why"] == ""

    run(main, timeout_s=30)


def test_a_port_that_is_taken_is_told(tmp_path):
    async def main():
        port = free_port()
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", port + OFFSET)
        try:
            with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1:{port + OFFSET}"):
                await Host(make_config(tmp_path, ports=[port], settings=SETTINGS)).start()
        finally:
            server.close()
            await server.wait_closed()

    run(main)
