"""An authority, what it signs, tokens, and the Secrets of a grid: made once, renewed in time, never half."""

from __future__ import annotations

import os
import ssl
import stat

import msgspec
import pytest
from typer.testing import CliRunner

from actorgrid import ambient
from actorgrid.cli.commands import app
from actorgrid.cluster import certificates, credential_files, kubernetes_secrets
from actorgrid.cluster.certificates import Pair
from actorgrid.credentials import TokenFile, digest_of, read_tokens
from actorgrid.errors import HostUnavailableError, SettingsError

DAY_NS = 86_400 * 10**9
CLIENTS = ("caller", "observer", "operator")


@pytest.fixture
def directory(tmp_path):
    credential_files.make(tmp_path / "credentials", "my grid/1", addresses=["grid.example"])
    return tmp_path / "credentials"


@pytest.fixture
def later(monkeypatch):
    """Lets days pass."""
    began = ambient.wall_clock_ns()
    return lambda days: monkeypatch.setattr(ambient, "wall_clock_ns", lambda: began + int(days * DAY_NS))


def test_openssl_agrees_with_what_is_made(directory):
    context = ssl.create_default_context(cafile=str(directory / "ca.crt"))
    context.load_cert_chain(directory / "host" / "tls.crt", directory / "host" / "tls.key")
    seen = dict(credential_files.show(directory))
    assert seen["host"].identities == ("actorgrid://my%20grid%2F1/host/*",)
    assert set(seen["host"].addresses) == {"localhost", "grid.example", "127.0.0.1", "::1"}
    assert seen["operator"].identities == ("actorgrid://my%20grid%2F1/operator/operator", "actorgrid://my%20grid%2F1/caller/operator")
    assert seen["ca.crt"].is_authority
    assert not seen["host"].is_authority


def test_keys_are_for_their_owner_alone(directory):
    for key in [*directory.glob("*/tls.key"), directory / "ca.key"]:
        assert stat.S_IMODE(os.stat(key).st_mode) == 0o600
    assert not list(directory.rglob("*.tmp"))


def test_nothing_is_made_twice(directory):
    with pytest.raises(SettingsError, match="has an authority already"):
        credential_files.make(directory, "other")
    with pytest.raises(SettingsError, match="exists already"):
        credential_files.issue(directory, ["caller"], "caller")


def test_renewal_when_a_third_of_the_life_is_left(directory, later):
    before = (directory / "host" / "tls.crt").read_bytes()
    later(credential_files.certificates.LEAF_DAYS * 0.6)
    assert credential_files.renew(directory) == []
    later(credential_files.certificates.LEAF_DAYS * 0.7)
    assert len(credential_files.renew(directory)) == 4
    after = certificates.look((directory / "host" / "tls.crt").read_bytes())
    assert (directory / "host" / "tls.crt").read_bytes() != before
    assert after.identities == certificates.look(before).identities
    assert set(after.addresses) == set(certificates.look(before).addresses)
    assert after.days_left > credential_files.certificates.LEAF_DAYS - 1
    assert credential_files.renew(directory) == []


def test_what_another_authority_signed_is_due(directory, tmp_path):
    credential_files.make(tmp_path / "other", "my grid/1")
    certificate = (directory / "host" / "tls.crt").read_bytes()
    assert not certificates.is_due(certificate, (directory / "ca.crt").read_bytes())
    assert certificates.is_due(certificate, (tmp_path / "other" / "ca.crt").read_bytes())


def test_no_certificate_outlives_its_authority(monkeypatch):
    authority = certificates.make_authority("g", days=10)
    pair = certificates.issue(authority, "g", ["host"], "*", days=90)
    assert certificates.look(pair.certificate).days_left <= 10


@pytest.mark.parametrize(
    ("name", "days", "words"), [("", 1, "1..64 characters"), ("x" * 65, 1, "1..64"), ("a\nb", 1, "1..64"), ("ok", 0, "days: 0 is outside")]
)
def test_what_cannot_be_issued(directory, name, days, words):
    with pytest.raises(SettingsError, match=words):
        certificates.issue(credential_files.read_authority(directory), "g", ["caller"], name, days=days)


def test_a_leaf_is_no_authority(directory):
    leaf = Pair((directory / "host" / "tls.crt").read_bytes(), (directory / "host" / "tls.key").read_bytes())
    with pytest.raises(SettingsError, match="may not sign others"):
        certificates.issue(leaf, "g", ["host"], "*")
    with pytest.raises(SettingsError, match="no certificate in PEM"):
        certificates.look(b"nonsense")
    with pytest.raises(SettingsError, match="cannot be read"):
        certificates.issue(Pair(leaf.certificate, b"nonsense"), "g", ["host"], "*")


def test_an_authority_is_changed_with_both_in_one_file(directory):
    new = certificates.make_authority("my grid/1")
    old = (directory / "ca.crt").read_bytes()
    (directory / "ca.crt").write_bytes(old + new.certificate)
    with_old_key = certificates.issue(credential_files.read_authority(directory), "my grid/1", ["caller"], "a")
    assert not certificates.is_due(with_old_key.certificate, old)
    (directory / "ca.key").write_bytes(new.key)
    assert len(credential_files.renew(directory, force=True)) == 4
    renewed = (directory / "host" / "tls.crt").read_bytes()
    assert not certificates.is_due(renewed, new.certificate)
    assert certificates.is_due(renewed, old)
    (directory / "ca.crt").write_bytes(old)
    with pytest.raises(SettingsError, match="is of the authority's key"):
        credential_files.renew(directory, force=True)


def test_a_holder_stays_in_the_directory(directory):
    assert certificates.look((credential_files.issue(directory, ["caller"], "shop") / "tls.crt").read_bytes()).identities == (
        "actorgrid://my%20grid%2F1/caller/shop",
    )
    for name in ("../x", "a/b", ".hidden"):
        with pytest.raises(SettingsError, match="no slash"):
            credential_files.issue(directory, ["caller"], name)


def test_tokens_are_kept_as_digests(directory):
    path = directory / "tokens.json"
    token = credential_files.add_token(path, "shop", ["caller", "caller"], 30)
    assert token not in path.read_text()
    [record] = read_tokens(path).tokens
    assert (record.name, record.roles, record.digest) == ("shop", ("caller",), digest_of(token.encode()))
    with pytest.raises(SettingsError, match="already"):
        credential_files.add_token(path, "shop", ["caller"], None)
    with pytest.raises(SettingsError, match="roles are caller, observer, operator, got host"):
        credential_files.add_token(path, "bad", ["host"], None)
    credential_files.remove_token(path, "shop")
    with pytest.raises(SettingsError, match="has no token"):
        credential_files.remove_token(path, "shop")


# -- on the command line


def test_the_command_line(tmp_path):
    runner = CliRunner()

    def ran(*arguments, code=0):
        result = runner.invoke(app, [*arguments])
        assert result.exit_code == code, result.output
        return result.output

    where = str(tmp_path / "c")
    assert "host" in ran("certs", "make", where, "--cluster", "g")
    assert "already" in ran("certs", "make", where, "--cluster", "g", code=1)
    assert "shop" in ran("certs", "issue", where, "--role", "caller", "--name", "shop")
    assert "no role root" in ran("certs", "issue", where, "--role", "root", "--name", "x", code=1)
    assert ran("certs", "renew", where) == "nothing is due\n"
    assert '"holder":"shop"' in ran("certs", "show", where, "--json")
    assert ran("tokens", "add", f"{where}/tokens.json", "--name", "t", "--role", "observer").startswith("agt_")
    assert '"roles":"observer"' in ran("tokens", "list", f"{where}/tokens.json", "--json")
    assert "removed t" in ran("tokens", "remove", f"{where}/tokens.json", "t")
    assert "cannot read" in ran("certs", "show", str(tmp_path / "nowhere"), code=1)


# -- Secrets


class Secrets:
    """Secrets in memory, with versions, as an API server keeps them."""

    def __init__(self):
        self.kept = {}
        self.meanwhile = []

    def read(self, name):
        return self.kept.get(name)

    def create(self, name, data):
        if name in self.kept:
            return False
        self.kept[name] = (data, "1")
        return True

    def update(self, name, data, version):
        if self.meanwhile:
            self.meanwhile.pop()()
        if self.kept[name][1] != version:
            return False
        self.kept[name] = (data, str(int(version) + 1))
        return True


def settled(store, **options):
    return kubernetes_secrets.settle(store, "grid", "g", **{"addresses": ["grid.svc"], "days": 90, **options})


def test_secrets_are_made_once_and_belong_together():
    store = Secrets()
    assert set(settled(store).values()) == {"made"}
    assert set(settled(store).values()) == {"kept"}
    assert set(store.kept) == {f"grid-{each}" for each in ("ca", "host", "tokens", "caller", "observer", "operator", "ray")}
    data = {name: content for name, (content, _) in store.kept.items()}
    assert data["grid-host"]["ca.crt"] == data["grid-ca"]["ca.crt"] == data["grid-caller"]["ca.crt"]
    assert b"ca.key" not in b"".join(key.encode() for name, each in data.items() if name != "grid-ca" for key in each)
    known = {each.digest: each.roles for each in msgspec.json.decode(data["grid-tokens"]["tokens.json"], type=TokenFile).tokens}
    assert known[digest_of(data["grid-caller"]["token"])] == ("caller",)
    assert set(known[digest_of(data["grid-operator"]["token"])]) == {"operator", "caller"}


def test_secrets_are_renewed_in_time_and_keep_what_people_added(later):
    store = Secrets()
    settled(store)
    content, version = store.kept["grid-tokens"]
    tokens = msgspec.json.decode(content["tokens.json"], type=TokenFile)
    own = credential_files.record_of("by hand", ["caller"], b"x")
    store.kept["grid-tokens"] = (
        {"tokens.json": credential_files.encode_tokens(TokenFile(tokens=(*tokens.tokens[1:], own)))},
        version,
    )
    later(70)
    assert {name for name, what in settled(store, only_renew=True).items() if what == "renewed"} == {"grid-host", "grid-tokens"}
    names = {each.name for each in msgspec.json.decode(store.kept["grid-tokens"][0]["tokens.json"], type=TokenFile).tokens}
    assert names == {"secret-caller", "secret-observer", "secret-operator", "by hand"}
    assert set(settled(store, only_renew=True).values()) == {"kept"}


def test_a_new_address_is_taken_into_the_certificate():
    store = Secrets()
    settled(store)
    assert settled(store, addresses=["grid.svc", "more.example"])["grid-host"] == "renewed"


def test_a_new_authority_reaches_every_secret():
    store = Secrets()
    settled(store)
    token = store.kept["grid-caller"][0]["token"]
    del store.kept["grid-ca"]
    assert {name for name, what in settled(store).items() if what == "renewed"} == {f"grid-{each}" for each in (*CLIENTS, "host")}
    assert {store.kept[f"grid-{each}"][0]["ca.crt"] for each in (*CLIENTS, "host")} == {store.kept["grid-ca"][0]["ca.crt"]}
    assert store.kept["grid-caller"][0]["token"] == token


def test_two_jobs_at_once_end_with_one_truth():
    store = Secrets()
    settled(store)
    store.meanwhile = [lambda: store.kept.update({"grid-host": (store.kept["grid-host"][0], "7")})]
    assert settled(store, addresses=["b.example"])["grid-host"] == "renewed"
    store.meanwhile = [lambda: store.kept.update({"grid-host": (store.kept["grid-host"][0], os.urandom(4).hex())})] * 5
    with pytest.raises(HostUnavailableError, match="changed by somebody else"):
        settled(store, addresses=["c.example"])


def test_what_is_missing_or_broken_is_said():
    with pytest.raises(SettingsError, match="there is no Secret grid-ca"):
        settled(Secrets(), only_renew=True)
    store = Secrets()
    settled(store)
    store.kept["grid-ca"] = ({"ca.crt": b"x"}, "1")
    with pytest.raises(SettingsError, match=r"Secret grid-ca has no entry ca\.key"):
        settled(store)
