"""TLS, credentials and roles, on real sockets: who is refused, that nothing of theirs is decoded, and what each role may do."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import socket
import ssl

import aiohttp
import pytest
from host_actors import Box
from host_harness import CLUSTER, PARTITIONS, QUICK, free_port, make_config, run, until

from actorgrid import ambient, grid
from actorgrid.ambient import new_client_id
from actorgrid.client import admin
from actorgrid.cluster import certificates, credential_files
from actorgrid.credentials import Credentials, Gate, check_host, client_context, identity_of, read_tokens, server_context, uri_of
from actorgrid.errors import AccessDeniedError, ActorGridError, DeadlineExceededError, HostUnavailableError, SettingsError
from actorgrid.host import listening, server
from actorgrid.host.host import Host
from actorgrid.host.listening import Penalties
from actorgrid.settings import HostSettings, WireSettings
from actorgrid.wire import messages
from actorgrid.wire.framing import frame

DAY_NS = 86_400 * 10**9

#: What a role may do; written out, so that a change of the product's own table is seen here.
LOOKING = {"status": {}, "nodes": {}, "partitions": {}, "explain": {"partition": 1}, "moves": {}}
ASKING = {"drain": {"node": "node-1", "intent": "pause", "estimate": True}, "rebalance": {"dry_run": True}}
CHANGING = {
    "init": {},
    "digests": {},  # changes nothing, and reads all state of a host
    "drain": {"node": "node-1", "intent": "pause"},
    "undrain": {"node": "node-1"},
    "rebalance": {},
    "freeze": {"reason": "test"},
    "unfreeze": {},
    "constrain": {"labels": {}},
    "recover": {},
}
OF_HOSTS = {
    "join": {"host": "host-1", "address": "127.0.0.1", "port": 1, "node": "node-1", "zone": ""},
    "process_died": {"host": "nobody", "process_id": "x"},
    "bootstrap_state": {},
    "no_such_verb": {},
}
RIGHTS = {
    "caller": (),
    "observer": (LOOKING, ASKING),
    "operator": (LOOKING, ASKING, CHANGING),
    "host": (LOOKING, ASKING, CHANGING, OF_HOSTS),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory of credentials; copied by tests that change it."""
    directory = tmp_path_factory.mktemp("credentials")
    credential_files.make(directory, CLUSTER)
    return directory


def holder(directory, name):
    return credential_files.credentials_of(directory / name)


def host_credentials(directory):
    return credential_files.credentials_of(directory / "host", tokens=directory / "tokens.json")


def with_token(directory, *roles, name="", days=None):
    token = credential_files.add_token(directory / "tokens.json", name or "+".join(roles), roles, days)
    return Credentials(ca=str(directory / "ca.crt"), token=token)


@pytest.fixture
def own(made, tmp_path):
    """Credentials that the test may change."""
    return shutil.copytree(made, tmp_path / "credentials")


@contextlib.asynccontextmanager
async def secure_grid(path, directory, hosts=1, settings=None, **options):
    ports = [free_port() for _ in range(hosts)]
    started = []
    try:
        for index in range(hosts):
            config = make_config(
                path, ports=ports, index=index, credentials=host_credentials(directory), settings=settings, replicas=hosts, **options
            )
            started.append(Host(config))
            await started[-1].start()
        await started[0].administer("init", {})
        await until(lambda: sum(partition.serving for host in started for partition in host.partitions.values()) > PARTITIONS)
        yield started
    finally:
        for host in started:
            await host.stop()


async def ask(host, verb, arguments, credentials, timeout_s=3.0):
    return await admin.ask(
        "127.0.0.1",
        host.port,
        verb,
        arguments,
        client_id=new_client_id(),
        cluster_id=CLUSTER,
        wire=WireSettings(),
        timeout_s=timeout_s,
        credentials=credentials,
    )


async def asked_at_all(host, verb, arguments, credentials):
    """Access was not denied; what the answer says is another test's business."""
    try:
        await ask(host, verb, arguments, credentials)
    except AccessDeniedError:
        raise
    except ActorGridError:
        pass


def client_of(host, credentials):
    return grid.Client(f"127.0.0.1:{host.port}", settings=dataclasses.replace(QUICK, timeout_s=2.0), credentials=credentials)


def counters(host):
    return host.status()["counters"]


async def refused(host, credentials, *words):
    """A client with these credentials is told no at once, and that is counted."""
    before = counters(host)
    with pytest.raises(AccessDeniedError) as caught:
        async with client_of(host, credentials):
            pass
    for word in words:
        assert word in str(caught.value)
    names = ("access_denied_total", "handshakes_failed_total")
    await until(lambda: sum(counters(host)[name] for name in names) > sum(before[name] for name in names))
    assert counters(host)["protocol_errors_total"] == before["protocol_errors_total"]


# -- who is let in


@pytest.mark.parametrize("role", ["caller", "observer", "operator", "host"])
def test_what_each_role_may_do(own, tmp_path, role):
    async def main():
        async with secure_grid(tmp_path / "data", own) as [host]:
            shown = [holder(own, "host")] if role == "host" else [with_token(own, role)]
            if role != "host":
                name = f"only-{role}"
                shown.append(holder(own, credential_files.issue(own, [role], name).name))
            for credentials in shown:
                for verbs in (LOOKING, ASKING, CHANGING, OF_HOSTS):
                    for verb, arguments in verbs.items():
                        if verbs in RIGHTS[role]:
                            await asked_at_all(host, verb, arguments, credentials)
                        else:
                            with pytest.raises(AccessDeniedError):
                                await ask(host, verb, arguments, credentials)
                async with client_of(host, credentials) as client:
                    assert client.partition_map.partition_count  # everybody may know where things are
                    if role in ("caller", "host"):
                        assert await client.get(Box, "a").add(1) >= 1
                    else:
                        with pytest.raises(AccessDeniedError, match="calling actors is for caller"):
                            await client.get(Box, "a").add(1)

    run(main, 30.0)


def test_a_holder_of_two_roles_may_do_both(own, tmp_path):
    async def main():
        async with secure_grid(tmp_path / "data", own) as [host]:
            both = with_token(own, "caller", "observer")
            assert (await ask(host, "status", {}, both))["host"]["name"] == "host-1"
            async with client_of(host, both) as client:
                assert await client.get(Box, "a").add(2) == 2
            with pytest.raises(AccessDeniedError, match="freeze is for host or operator, and"):
                await ask(host, "freeze", {"reason": "x"}, both)

    run(main)


def test_only_hosts_ask_on_behalf_of_others(own, tmp_path):
    async def main():
        async with secure_grid(tmp_path / "data", own) as [host]:
            with pytest.raises(AccessDeniedError, match="on whose behalf"):
                await ask(host, "undrain", {"node": "node-1", "by": "host-1"}, holder(own, "operator"))

    run(main)


def test_without_a_credential_nobody_gets_in(own, tmp_path):
    async def main():
        async with secure_grid(tmp_path / "data", own) as [host]:
            await refused(host, Credentials(ca=str(own / "ca.crt")), "wants a credential")
            await refused(host, Credentials(ca=str(own / "ca.crt"), token="agt_wrong"), "not known")
            await refused(host, None, "speaks TLS")

    run(main)


def test_what_has_expired_is_refused(own, tmp_path, monkeypatch):
    long_ago = ambient.wall_clock_ns() - 400 * DAY_NS
    with monkeypatch.context() as past:
        past.setattr(ambient, "wall_clock_ns", lambda: long_ago)
        old_certificate = holder(own, credential_files.issue(own, ["operator"], "old").name)
        old_token = with_token(own, "operator", name="old token", days=30)

    async def main():
        async with secure_grid(tmp_path / "data", own) as [host]:
            await refused(host, old_certificate, "CERTIFICATE_EXPIRED")
            await refused(host, old_token, "has expired")

    run(main)


def test_what_is_of_another_grid_is_refused(own, tmp_path):
    other = tmp_path / "other"
    credential_files.make(other, "another-grid")
    of_other_authority = dataclasses.replace(holder(other, "operator"), ca=str(own / "ca.crt"))
    authority = credential_files.read_authority(own)
    pair = certificates.issue(authority, "another-grid", ["operator"], "eve")
    (tmp_path / "eve.crt").write_bytes(pair.certificate)
    (tmp_path / "eve.key").write_bytes(pair.key)
    of_other_name = Credentials(ca=str(own / "ca.crt"), certificate=str(tmp_path / "eve.crt"), key=str(tmp_path / "eve.key"))

    async def main():
        async with secure_grid(tmp_path / "data", own) as [host]:
            await refused(host, of_other_authority, "refused this client's certificate")
            await refused(host, of_other_name, "is of grid another-grid, this is grid")
            with pytest.raises(AccessDeniedError, match="not of this grid"):  # the client is the one that refuses
                async with client_of(host, holder(other, "operator")):
                    pass

    run(main)


@pytest.mark.pure
def test_plain_text_on_a_tls_port_is_counted_and_never_decoded(own, tmp_path, monkeypatch, caplog):
    decoded = []
    monkeypatch.setattr(server, "read_hello", lambda payload: decoded.append(payload))

    async def main():
        async with secure_grid(tmp_path / "data", own) as [host]:
            before = counters(host)
            hello = messages.Hello(messages.MAGIC, 1, 1, "", messages.ROLE_OPERATOR, bytes(16))
            for sent in (frame(messages.encode(hello)), b"GET /v1/status HTTP/1.1\r\n\r\n", bytes(100)):
                reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
                writer.write(sent)
                with contextlib.suppress(ConnectionError):
                    answer = await asyncio.wait_for(reader.read(1000), 5)
                    assert CLUSTER.encode() not in answer
                writer.close()
            await until(lambda: counters(host)["handshakes_failed_total"] == before["handshakes_failed_total"] + 3)
            assert counters(host)["connections"] == before["connections"]

    run(main)
    assert not decoded
    failures = [record.getMessage() for record in caplog.records if "TLS handshake failed" in record.getMessage()]
    assert len(failures) == 3
    assert all("peer=127.0.0.1" in message for message in failures)


def test_a_stranger_who_says_nothing_is_cut_off(own, tmp_path):
    async def main():
        async with secure_grid(tmp_path / "data", own, wire=WireSettings(handshake_timeout_s=0.2)) as [host]:
            reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(10), 5) == b""
            writer.close()
            await until(lambda: counters(host)["handshakes_failed_total"] == 1)

    run(main)


def test_failures_make_the_next_handshake_wait_and_a_success_ends_that():
    penalties = Penalties()
    waits = []
    for _ in range(12):
        waits.append(penalties.wait_s("10.0.0.1", 100.0))
        penalties.failed("10.0.0.1", 100.0)
    assert waits[: listening.FAILURES_FREE + 1] == [0.0] * (listening.FAILURES_FREE + 1)
    assert waits[-3:] == [pytest.approx(min(listening.PENALTY_MAX_S, 0.05 * 2**n)) for n in (5, 6, 7)]
    assert penalties.wait_s("10.0.0.2", 100.0) == 0.0
    assert penalties.wait_s("10.0.0.1", 100.0 + listening.FORGIVEN_AFTER_S + 1) == 0.0
    penalties.failed("10.0.0.1", 300.0)
    penalties.succeeded("10.0.0.1")
    assert penalties.wait_s("10.0.0.1", 300.0) == 0.0
    for number in range(listening.ADDRESSES_MAX + 10):
        penalties.failed(f"a{number}", 0.0)
    assert len(penalties._failures) == listening.ADDRESSES_MAX


def test_who_fails_again_and_again_waits_and_nobody_else(own, tmp_path):
    async def main():
        async with secure_grid(tmp_path / "data", own) as [host]:
            loop = asyncio.get_running_loop()
            wrong = Credentials(ca=str(own / "ca.crt"), token="agt_wrong")
            for _ in range(listening.FAILURES_FREE + 3):
                with pytest.raises(AccessDeniedError):
                    await ask(host, "status", {}, wrong)
            for _ in range(20):
                host.penalties.failed("127.0.0.1", loop.time())
            assert host.penalties.wait_s("127.0.0.1", loop.time()) == listening.PENALTY_MAX_S
            with pytest.raises((HostUnavailableError, DeadlineExceededError)):  # the refusal comes later than this client waits
                await ask(host, "status", {}, wrong, timeout_s=0.5)
            await ask(host, "status", {}, holder(own, "operator"), timeout_s=1.0)  # of the same address, and let in at once
            assert host.penalties.wait_s("127.0.0.1", loop.time()) == 0

    run(main)


def test_who_only_looks_whether_somebody_listens_fails_at_nothing(own, tmp_path):
    async def main():
        async with secure_grid(tmp_path / "data", own) as [host]:
            for _ in range(10):
                _reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
                writer.close()
                await writer.wait_closed()
            await ask(host, "status", {}, holder(own, "operator"))
            assert counters(host)["handshakes_failed_total"] == 0

    run(main)


def test_peers_find_each_other_again_however_often_they_were_refused(own, tmp_path):
    wrong = tmp_path / "wrong"
    credential_files.make(wrong, CLUSTER)

    async def main():
        async with secure_grid(tmp_path / "data", own, hosts=2) as [first, second]:
            await until(lambda: first._peers.is_up("host-2"))
            kept = {name: (own / "host" / name).read_bytes() for name in ("ca.crt", "tls.crt", "tls.key")}
            for name in kept:
                shutil.copy(wrong / "host" / name, own / "host" / name)
            for name in kept:  # the hosts share one directory: both show what the other one does not know
                shutil.copy(wrong / "host" / name, own / "host" / name)
            (own / "host" / "ca.crt").write_bytes(kept["ca.crt"])
            for host in (first, second):
                for link in host._peers.links.values():
                    if link.connection is not None:
                        link.connection.close()
            await asyncio.sleep(4.0)
            assert not first._peers.is_up("host-2")
            for name, content in kept.items():
                (own / "host" / name).write_bytes(content)
            await until(lambda: first._peers.is_up("host-2") and second._peers.is_up("host-1"), 10.0)

    run(main, 40.0)


def test_strangers_who_say_nothing_keep_no_host_out(own, tmp_path, monkeypatch):
    async def main():
        async with secure_grid(tmp_path / "data", own, settings=HostSettings(connections_max=4)) as [host]:
            trust = client_context(Credentials(ca=str(own / "ca.crt"), token="x"))
            strangers = [await asyncio.open_connection("127.0.0.1", host.port, ssl=trust, server_hostname="x") for _ in range(12)]
            await ask(host, "status", {}, holder(own, "host"))
            for _, writer in strangers:
                writer.close()

    run(main)


def test_a_token_that_is_worth_less_now_ends_its_connections(own):
    credentials = host_credentials(own)
    gate = Gate(credentials, CLUSTER)
    token = credential_files.add_token(own / "tokens.json", "boss", ["operator"], None).encode()
    identity = gate.identify(None, token)
    assert gate.still_counts(identity)
    content = (own / "tokens.json").read_text()
    (own / "tokens.json").write_text(content.replace('"operator"', '"observer"'))
    assert not gate.still_counts(identity)
    assert gate.identify(None, token).roles == {"observer"}


def test_a_client_takes_the_seed_that_takes_it(own, tmp_path):
    other = tmp_path / "other"
    credential_files.make(other, CLUSTER)

    async def main():
        async with secure_grid(tmp_path / "data", own) as [host], secure_grid(tmp_path / "data2", other) as [stranger]:
            seeds = f"127.0.0.1:{stranger.port},127.0.0.1:{host.port}"
            async with grid.Client(seeds, settings=QUICK, credentials=holder(own, "caller")) as client:
                assert await client.get(Box, "a").add(1) == 1

    run(main)


# -- hosts among themselves


def test_a_grid_of_three_over_tls(own, tmp_path):
    async def main():
        async with (
            secure_grid(tmp_path / "data", own, hosts=3) as hosts,
            client_of(hosts[0], holder(own, "caller")) as client,
        ):
            for number in range(20):
                assert await client.get(Box, f"a{number}").add(number) == number
            await hosts[2].stop()
            for number in range(20):
                assert await client.get(Box, f"a{number}").add(0) == number
            assert all(
                link.connection is None or link.connection.transport.get_extra_info("cipher") for link in hosts[0]._peers.links.values()
            )

    run(main, 30.0)


def test_a_host_is_only_who_its_certificate_says(own, tmp_path):
    credential_files.issue(own, ["host"], "host-2")
    ports = [free_port(), free_port()]

    async def main():
        first = Host(make_config(tmp_path, ports=ports, index=0, credentials=host_credentials(own), replicas=2))
        # It says that it is host-2 and may, then that it is a host-2 with the certificate of a caller, who may not.
        second = Host(make_config(tmp_path, ports=ports, index=1, credentials=holder(own, "host-2"), replicas=2))
        try:
            await first.start()
            await second.start()
            await until(lambda: first._peers.is_up("host-2"))
        finally:
            await second.stop()
            await first.stop()
        impostor = tmp_path / "impostor"
        shutil.copytree(own, impostor)
        credential_files.issue(impostor, ["host"], "host-9")
        third = Host(make_config(tmp_path / "again", ports=ports, index=0, credentials=host_credentials(own), replicas=2))
        liar = Host(make_config(tmp_path / "again", ports=ports, index=1, credentials=holder(impostor, "host-9"), replicas=2))
        try:
            await third.start()
            await liar.start()
            await asyncio.sleep(1.0)
            assert not third._peers.is_up("host-2")
            assert not liar._peers.is_up("host-1")
        finally:
            await liar.stop()
            await third.stop()

    run(main, 30.0)


def test_a_client_shows_its_token_to_hosts_only(own, tmp_path):
    seen = []

    async def main():
        caller = holder(own, "caller")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(caller.certificate, caller.key)  # a real certificate of the grid, but not of a host
        trap = await asyncio.start_server(lambda reader, writer: seen.append(reader), "127.0.0.1", free_port(), ssl=context)
        async with trap:
            port = trap.sockets[0].getsockname()[1]
            victim = grid.Client(f"127.0.0.1:{port}", settings=QUICK, credentials=with_token(own, "operator"))
            with pytest.raises(AccessDeniedError):
                async with victim:
                    pass
        with pytest.raises(AccessDeniedError, match="not a host's"):
            check_host({"subjectAltName": (("URI", uri_of(CLUSTER, "caller", "x")),)}, CLUSTER)

    run(main, problems_allowed=True)
    assert not seen


def test_credentials_against_a_host_without_tls(own, tmp_path):
    async def main():
        host = Host(make_config(tmp_path))
        await host.start()
        try:
            with pytest.raises(AccessDeniedError, match="does not speak TLS"):
                async with client_of(host, holder(own, "operator")):
                    pass
        finally:
            await host.stop()

    run(main)


# -- renewal


def test_certificates_are_renewed_without_a_restart(own, tmp_path):
    async def main():
        async with secure_grid(tmp_path / "data", own) as [host]:
            shown = holder(own, "caller")
            async with client_of(host, shown) as client:
                assert await client.get(Box, "a").add(1) == 1
                before = await serial_at(host.port, shown)
                assert credential_files.renew(own) == []  # nothing is due yet
                assert {path.name for path in credential_files.renew(own, force=True)} == {"host", "operator", "observer", "caller"}
                assert await serial_at(host.port, shown) != before
                assert await client.get(Box, "a").add(2) == 3  # on the connection that stood
            # Half a file, or a key that is another's, does not cost the host its certificate.
            now = await serial_at(host.port, shown)
            (own / "host" / "tls.crt").write_text("-----BEGIN CERTIFICATE-----\nnonsense\n")
            assert await serial_at(host.port, shown) == now

    run(main)


async def serial_at(port, credentials):
    _reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_context(credentials), server_hostname="x")
    certificate = writer.get_extra_info("peercert")
    writer.close()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()
    return certificate["serialNumber"]


def test_a_token_that_is_removed_ends_its_connections(own, tmp_path, monkeypatch):
    monkeypatch.setattr("actorgrid.host.host.CREDENTIALS_LOOK_S", 0.1)

    async def main():
        async with secure_grid(tmp_path / "data", own) as [host]:
            async with client_of(host, with_token(own, "caller", name="shop")) as client:
                assert await client.get(Box, "a").add(1) == 1
                credential_files.remove_token(own / "tokens.json", "shop")

                async def call_on():
                    for _ in range(100):
                        await client.get(Box, "a").add(1)
                        await asyncio.sleep(0.05)

                with pytest.raises((AccessDeniedError, HostUnavailableError)):
                    await call_on()
            added = with_token(own, "caller", name="later")  # and one that is added counts at once
            async with client_of(host, added) as client:
                assert await client.get(Box, "a").add(3) > 3

    run(main)


# -- HTTP


def test_http_wants_the_same_credentials(own, tmp_path):
    async def main():
        async with secure_grid(tmp_path / "data", own, settings=HostSettings(http_port_offset=7)) as [host]:
            base = f"https://localhost:{host.port + 7}"
            observer, caller = with_token(own, "observer"), with_token(own, "caller")
            trust = ssl.create_default_context(cafile=str(own / "ca.crt"))
            async with aiohttp.ClientSession(base, connector=aiohttp.TCPConnector(ssl=trust)) as session:

                async def asked(method, path, token="", **options):
                    headers = {"Authorization": f"Bearer {token}"} if token else {}
                    async with session.request(method, path, headers=headers, **options) as response:
                        return response.status

                assert await asked("GET", "/livez") == 200
                assert await asked("GET", "/v1/status") == 401
                assert await asked("GET", "/v1/status", "agt_wrong") == 401
                assert await asked("GET", "/v1/status", caller.token) == 403
                assert await asked("GET", "/v1/status", observer.token) == 200
                assert await asked("POST", "/v1/freeze", observer.token, json={"reason": "x"}) == 403
                assert await asked("GET", "/v1/status", observer.token, skip_auto_headers=["Host"]) in (200, 400)
            context = client_context(holder(own, "operator"))
            async with (
                aiohttp.ClientSession(base, connector=aiohttp.TCPConnector(ssl=context)) as session,
                session.post("/v1/freeze", json={"reason": "by certificate"}) as response,
            ):
                assert response.status in (200, 503), await response.text()

    run(main)


# -- what is wrong with files is said


def test_a_host_outside_loopback_without_credentials_refuses_to_start(tmp_path):
    with pytest.raises(SettingsError, match="without credentials: anybody who reaches it could do anything"):
        dataclasses.replace(make_config(tmp_path), listen="0.0.0.0")
    with pytest.raises(SettingsError, match="not a loopback address"):
        dataclasses.replace(make_config(tmp_path), address="192.0.2.7")


def test_a_host_may_listen_elsewhere_with_credentials(own, tmp_path):
    config = dataclasses.replace(make_config(tmp_path, credentials=host_credentials(own)), listen="0.0.0.0", address="localhost")

    async def main():
        host = Host(config)
        await host.start()
        try:
            assert host._server.sockets[0].getsockname()[0] == "0.0.0.0"
        finally:
            await host.stop()

    run(main)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ca": ""}, "authority"),
        ({"key": ""}, "belong together"),
        ({"ca": "/nowhere/ca.crt"}, "there is no file"),
        ({"token": "a", "token_file": "b"}, "given twice"),
    ],
)
def test_credentials_that_do_not_go_together(own, change, words):
    with pytest.raises(SettingsError, match=words):
        dataclasses.replace(holder(own, "caller"), **change)


def test_files_that_are_none(own):
    broken = holder(own, "caller")
    shutil.copy(own / "operator" / "tls.key", broken.key)
    with pytest.raises(SettingsError, match="are no certificate with its key"):
        client_context(broken)
    (own / "ca.crt").write_text("nonsense")
    with pytest.raises(SettingsError, match="holds no certificate"):
        client_context(Credentials(ca=str(own / "ca.crt"), token="x"))
    with pytest.raises(SettingsError, match="who listens needs a certificate"):
        server_context(Credentials(ca=str(own / "ca.crt"), token="x"))
    (own / "tokens.json").write_text('{"tokens": [{"name": "a", "roles": ["root"], "digest": ""}]}')
    with pytest.raises(SettingsError, match="root"):
        read_tokens(own / "tokens.json")


def test_the_environment_gives_credentials(own):
    assert Credentials.from_environment({}) is None
    found = Credentials.from_environment({"ACTORGRID_CA": str(own / "ca.crt"), "ACTORGRID_TOKEN": "secret-text"})
    assert found is not None
    assert found.read_token() == b"secret-text"
    assert "secret-text" not in repr(found)
    with pytest.raises(SettingsError, match="ACTORGRID_CA"):
        Credentials.from_environment({"ACTORGRID_TOKEN": "x"})


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["https://example.org/host/x"],
        ["actorgrid://grid/root/x"],
        ["actorgrid://grid/host"],
        ["actorgrid://one/host/x", "actorgrid://two/operator/x"],
    ],
)
def test_a_certificate_without_one_identity_is_nobody(uris):
    assert identity_of({"subjectAltName": tuple(("URI", uri) for uri in uris), "notAfter": "Jan  1 00:00:00 2099 GMT"}) is None


def test_a_gate_without_credentials_is_open():
    gate = Gate(None, CLUSTER)
    assert gate.identify(None, b"").roles >= {"host", "operator", "caller"}


def test_a_port_that_is_taken_is_said(own, tmp_path):
    async def main():
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", free_port()))
            taken.listen()
            host = Host(make_config(tmp_path, ports=[taken.getsockname()[1]], credentials=host_credentials(own)))
            with pytest.raises(SettingsError, match="cannot listen on"):
                await host.start()

    run(main)
