"""`flead users` and `flead keys`, and where the server refuses to listen."""

from __future__ import annotations

import base64
import io
import ipaddress
import json
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fastapi import FastAPI
from pydantic import ValidationError

from config.child import free_port
from config.settings import MongoSettings, ServerSettings
from flead.errors import BadConfiguration
from global_server.access.passwords import holds
from global_server.main import http_of
from storage.access import AccessRepository, AuditRepository
from storage.connection import connect, open_database
from storage.embedded import embedded_mongod
from tests.fixtures_cli import Flead
from tests.fixtures_http import listening

servers = pytest.mark.servers
PASSWORD = "correct horse battery"  # noqa: S105


@pytest.fixture
def database(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[AccessRepository, AuditRepository]]:
    """The run's database, whose server is on, as while `flead serve` runs."""
    with embedded_mongod(run_dir / "mongodb", free_port()) as server:
        settings = MongoSettings(port=server.port)
        monkeypatch.setenv("FLEAD_MONGODB__PORT", str(server.port))
        with connect(settings) as client:
            found = open_database(client, settings)
            yield AccessRepository(found), AuditRepository(found)


@servers
def test_users(
    flead: Flead, database: tuple[AccessRepository, AuditRepository], monkeypatch: pytest.MonkeyPatch
) -> None:
    access, log = database
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PASSWORD}\n"))
    ended = flead("users", "add", "ada", "--role", "operator", "--password-stdin")
    assert (ended.code, ended.out) == (0, "")
    made = json.loads(flead("users", "add", "bob", "--generate", "--json").out)
    assert made.keys() == {"name", "role", "password"}
    assert flead("users", "add", "ada", "--generate").code == 1
    listed = json.loads(flead("users", "list", "--json").out)["users"]
    assert [(user["name"], user["role"]) for user in listed] == [("ada", "operator"), ("bob", "viewer")]
    kept = {user.name: user.password for user in access.users()}
    assert holds(PASSWORD, kept["ada"])
    assert holds(made["password"], kept["bob"])
    other = flead("users", "password", "ada", "--generate").out.strip()
    assert flead("users", "remove", "bob").code == 0
    assert flead("users", "remove", "bob").code == 1
    assert flead("users", "password", "bob", "--generate").code == 1
    kept = {user.name: user.password for user in access.users()}
    assert holds(other, kept["ada"])
    assert not holds(made["password"], kept["bob"])
    assert flead("users", "add", "bob", "--generate").code == 0, "who was removed may come back"
    entries = [(entry["action"], entry["target"]) for entry in log.newest(10)]
    assert entries == [
        ("user.add", "bob"), ("user.remove", "bob"), ("user.password", "ada"), ("user.add", "bob"), ("user.add", "ada"),
    ]  # fmt: skip
    assert PASSWORD not in str(log.newest(10))


@pytest.mark.parametrize("password", ["short", ""])
def test_a_password_that_anybody_could_guess(flead: Flead, monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{password}\n"))
    ended = flead("users", "add", "ada", "--password-stdin")
    assert (ended.code, "a password has 10 to" in ended.err) == (1, True)


@servers
def test_keys(flead: Flead, database: tuple[AccessRepository, AuditRepository]) -> None:
    access, log = database
    shown = flead("keys", "add", "pump-1")
    key = shown.out.strip()
    assert key.startswith("flead_dk_")
    public = base64.b64encode(b"\x01" + bytes(31)).decode()
    made = json.loads(flead("keys", "add", "edge-1", "--aggregator", "--public-key", public, "--json").out)
    assert made["key"].startswith(f"flead_dk_{made['key_id']}_")
    assert flead("keys", "add", "pump-2", "--public-key", "?").code == 1
    assert flead("keys", "add", "").code == 1
    assert flead("keys", "revoke", made["key_id"]).code == 0
    assert flead("keys", "revoke", "none").code == 1
    listed = {one["device_id"]: one for one in json.loads(flead("keys", "list", "--json").out)["keys"]}
    assert listed.keys() == {"pump-1", "edge-1"}
    assert (listed["pump-1"]["revoked_at"], listed["edge-1"]["revoked_at"] is None) == (None, False)
    assert [entry["action"] for entry in log.newest(10)] == ["key.revoke", "key.make", "key.make"]
    everything = str(access.keys()) + str(log.newest(10)) + flead("keys", "list").out
    assert key not in everything
    assert made["key"] not in everything


OUTSIDE = {"host": "0.0.0.0"}  # noqa: S104
TLS = {"tls_certificate": "a", "tls_key": "b"}
WRONG: dict[str, dict[str, Any]] = {
    "open": OUTSIDE | TLS,
    "in the clear": OUTSIDE | {"access": "required"},
    "half of TLS": {"tls_certificate": "a"},
    "no address": {"host": "example.org"},
}
RIGHT: dict[str, dict[str, Any]] = {
    "this machine": {"host": "::1"},
    "with TLS": OUTSIDE | TLS | {"access": "required"},
    "behind a proxy": OUTSIDE | {"access": "required", "behind_proxy": True},
}


@pytest.mark.parametrize("kind", WRONG)
def test_where_it_refuses_to_listen(kind: str) -> None:
    with pytest.raises(ValidationError):
        ServerSettings(**WRONG[kind])


@pytest.mark.parametrize("kind", RIGHT)
def test_where_it_listens(kind: str) -> None:
    ServerSettings(**RIGHT[kind])


def certificate(folder: Path) -> ServerSettings:
    """Settings with a certificate of 127.0.0.1 that signs itself."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(alternative, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "certificate.pem").write_bytes(made.public_bytes(pem))
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return ServerSettings(tls_certificate=folder / "certificate.pem", tls_key=folder / "key.pem")


def test_it_speaks_tls(tmp_path: Path) -> None:
    app = FastAPI()
    app.get("/healthz")(lambda: "ok")
    settings = certificate(tmp_path)
    with listening(http_of(app, settings)) as port:
        trusted = ssl.create_default_context(cafile=settings.tls_certificate)
        assert httpx.get(f"https://127.0.0.1:{port}/healthz", verify=trusted).json() == "ok"
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{port}/healthz")


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(tmp_path: Path) -> None:
    settings = certificate(tmp_path)
    path = tmp_path / "key.pem"
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    encrypted = serialization.BestAvailableEncryption(b"secret")
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encrypted))
    with pytest.raises(BadConfiguration, match="unencrypted"):
        http_of(FastAPI(), settings)


def test_a_certificate_that_is_none_is_named(tmp_path: Path) -> None:
    settings = certificate(tmp_path)
    (tmp_path / "key.pem").write_text("?")
    with pytest.raises(BadConfiguration, match=r"server\.tls_key"):
        http_of(FastAPI(), settings)


def test_the_log_of_a_proxy_is_believed_only_where_there_is_one() -> None:
    assert not http_of(FastAPI(), ServerSettings()).proxy_headers
    behind = http_of(FastAPI(), ServerSettings(access="required", behind_proxy=True))
    assert behind.proxy_headers
    assert behind.forwarded_allow_ips == ["127.0.0.1", "::1"]
