"""Who may ask the global server, what is refused, and that the audit log has it."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import SecretStr

from config.aggregation import AggregationSettings
from config.settings import ServerSettings
from flead.errors import CorruptRunFolder, Unavailable
from flead.messages import GlobalModel
from global_server.access import known
from global_server.access.audit import Audit
from global_server.access.guard import COOKIE, REFUSALS_PER_MINUTE, Guard
from global_server.access.keys import new_key
from global_server.access.passwords import hashed
from global_server.access.roles import Role
from global_server.access.tokens import ALGORITHM, AUDIENCE, ISSUER, Tokens, of_the_run
from global_server.app import create_app
from global_server.telemetry import MeasuredService, Telemetry
from storage.access import AccessRepository, AuditRepository
from storage.rounds import RoundRepository
from tests.fixtures_storage import Mongo, wait_until
from tests.test_global_server_app import body, live, problem

pytestmark = pytest.mark.servers

SECRET = SecretStr("a secret of thirty-two characters")
PASSWORD = "correct horse battery"  # noqa: S105
KEPT = hashed(PASSWORD)
BROWSER = {"Accept": "text/html,*/*;q=0.8"}


def publish(_model: GlobalModel) -> None:
    raise Unavailable("no broker here")


@dataclass
class Server:
    """A server that asks for credentials, and what it keeps them in."""

    http: httpx.Client
    repository: AccessRepository
    log: AuditRepository

    def token(self, name: str) -> dict[str, str]:
        given = self.http.post("/api/token", json={"username": name, "password": PASSWORD}).json()
        return {"Authorization": f"Bearer {given['access_token']}"}

    def key(self, device: str, **fields: Any) -> dict[str, str]:
        made = self.http.post("/api/keys", json={"device_id": device, **fields}, headers=self.token("admin")).json()
        return {"X-Device-Key": made["key"]}

    def send(self, device: str, headers: dict[str, str], **fields: Any) -> httpx.Response:
        return self.http.post("/api/local-update", json=body(device, **fields), headers=headers)

    def noted(self, action: str = "access") -> list[dict[str, Any]]:
        """The audit log's entries of an action, newest first."""
        return [entry for entry in self.log.newest(100) if entry["action"] == action]


@contextmanager
def serving(mongo: Mongo, *, access: str = "required", site: str | None = None, **settings: Any) -> Iterator[Server]:
    repository, log = AccessRepository(mongo.database), AuditRepository(mongo.database)
    audit = Audit(log)
    limits = {"logins_per_minute": 1_000} | settings
    guard = Guard(audit, ServerSettings(access=access, **limits), repository, SECRET)
    service = MeasuredService(RoundRepository(mongo.database), AggregationSettings(), publish)
    service.telemetry = Telemetry()
    service.load()
    with live(create_app(service, guard=guard, audit=audit, telemetry=service.telemetry, site=site)) as http:
        yield Server(http, repository, log)


@pytest.fixture
def server(mongo: Mongo) -> Iterator[Server]:
    for role in ("viewer", "operator", "admin"):
        AccessRepository(mongo.database).add_user(role, role, KEPT)
    with serving(mongo) as server:
        yield server


def refused(answer: httpx.Response, status: int) -> dict[str, Any]:
    document = problem(answer, status)
    assert (status == 401) == ("www-authenticate" in answer.headers)
    return document


CHANGES = [
    ("GET", "/api/status", Role.VIEWER),
    ("GET", "/api/history", Role.VIEWER),
    ("GET", "/metrics", Role.VIEWER),
    ("GET", "/docs", Role.VIEWER),
    ("GET", "/openapi.json", Role.VIEWER),
    ("POST", "/api/aggregate", Role.OPERATOR),
    ("POST", "/api/keys", Role.ADMIN),
    ("GET", "/api/keys", Role.ADMIN),
    ("DELETE", "/api/keys/none", Role.ADMIN),
    ("GET", "/api/audit", Role.ADMIN),
]
ORDER = ["viewer", "operator", "admin"]


def test_each_role_may_what_it_says_and_no_more(server: Server) -> None:
    tokens = {name: server.token(name) for name in ORDER}
    device = server.key("pump-1")
    for method, path, least in CHANGES:
        problem(server.http.request(method, path), 401)
        problem(server.http.request(method, path, headers=device), 403)
        for name in ORDER:
            status = server.http.request(method, path, headers=tokens[name]).status_code
            assert (status == 403) == (ORDER.index(name) < ORDER.index(least)), (method, path, name)
            assert status != 401
    wrong = [entry for entry in server.noted() if entry["who"] == "viewer"]
    assert {entry["target"] for entry in wrong} >= {"POST /api/aggregate", "POST /api/keys", "GET /api/audit"}
    assert all("refused: viewer is viewer" in entry["outcome"] for entry in wrong)


def test_everything_but_what_must_be_open_takes_credentials(server: Server) -> None:
    document = server.http.get("/openapi.json", headers=server.token("viewer")).json()
    without = set()
    for path, item in document["paths"].items():
        for method in item:
            if server.http.request(method, path.replace("{", "").replace("}", "")).status_code != 401:
                without.add(f"{method} {path}")
    assert without == {
        "get /", "get /healthz", "get /readyz", "post /api/token", "post /api/session", "delete /api/session",
    }  # fmt: skip


def test_a_body_of_nobody_is_not_read(server: Server) -> None:
    """It would be parsed before the route asks who sent it, and what is wrong with it would be said."""
    headers = {"Content-Type": "application/json"}
    for path in ("/api/config", "/api/keys", "/api/restore", "/api/quarantine/a", "/api/secure/join"):
        refused(server.http.post(path, content=b"{", headers=headers), 401)
        assert server.noted()[0]["target"] == f"POST {path}"
    problem(server.http.post("/api/config", content=b"{", headers=headers | server.token("operator")), 422)


def test_devices_read_the_model_and_send_updates_of_their_own(server: Server) -> None:
    key = server.key("pump-1")
    assert server.send("pump-1", key).json()["status"] == "accepted"
    assert server.http.get("/api/global-model", headers=key).status_code == 404
    as_bearer = {"Authorization": f"Bearer {key['X-Device-Key']}"}
    assert server.send("pump-1", as_bearer).json()["status"] == "duplicate"
    assert "pump-2" in refused(server.send("pump-2", key), 403)["detail"]
    refused(server.send("pump-1", server.token("operator")), 403)
    assert server.noted("update.send")[0]["target"] == "pump-2"
    assert server.noted("update.send")[0]["outcome"].startswith("refused")


def test_an_aggregator_sends_for_others(server: Server) -> None:
    key = server.key("edge-1", aggregator=True)
    assert server.send("pump-1", key).json()["status"] == "accepted"


def test_a_revoked_key_holds_no_longer(server: Server) -> None:
    key, admin = server.key("pump-1"), server.token("admin")
    key_id = server.http.get("/api/keys", headers=admin).json()["keys"][0]["key_id"]
    assert server.http.delete(f"/api/keys/{key_id}", headers=admin).json()["revoked_at"]
    refused(server.send("pump-1", key), 401)
    assert [entry["action"] for entry in server.log.newest(3)] == ["access", "key.revoke", "log in"]
    problem(server.http.delete("/api/keys/none", headers=admin), 404)


def test_a_key_that_a_command_revoked_holds_no_longer_either(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "REFRESH_S", 0.05)
    key = server.key("pump-1")
    server.repository.revoke_key(server.repository.list_keys("pump-1")[0].key_id)
    wait_until(lambda: server.send("pump-1", key).status_code == 401)


def test_a_key_is_shown_once_and_kept_nowhere(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        key, admin = server.key("pump-1")["X-Device-Key"], server.token("admin")
        server.send("pump-1", {"X-Device-Key": key})
    stored = json.dumps([*map(str, server.repository.keys()), *map(str, server.log.newest(100))])
    listed = server.http.get("/api/keys", headers=admin).text + server.http.get("/api/audit", headers=admin).text
    for secret in (key, key.rpartition("_")[2], PASSWORD, admin["Authorization"].partition(" ")[2]):
        assert secret not in stored + listed + caplog.text


def forged(**claims: Any) -> str:
    now = datetime.now(UTC)
    whole = {"iss": ISSUER, "aud": AUDIENCE, "sub": "admin", "role": "admin", "gen": 1, "jti": "x"}
    whole |= {"iat": now, "exp": now + timedelta(minutes=5)} | claims
    return jwt.encode({k: v for k, v in whole.items() if v is not None}, SECRET.get_secret_value(), ALGORITHM)


def past() -> datetime:
    return datetime.now(UTC) - timedelta(hours=1)


def with_algorithm_none() -> str:
    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    claims = jwt.decode(forged(), options={"verify_signature": False})
    return f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(claims)}."


TOKENS: dict[str, Callable[[], str]] = {
    "expired": lambda: Tokens(SECRET, past).make("admin", Role.ADMIN, 1, timedelta(minutes=5))[0],
    "of another key": lambda: Tokens(SecretStr("b" * 32)).make("admin", Role.ADMIN, 1, timedelta(minutes=5))[0],
    "without a signature": with_algorithm_none,
    "cut": lambda: forged()[:-3],
    "of another server": lambda: forged(iss="elsewhere"),
    "for another server": lambda: forged(aud="elsewhere"),
    "not yet": lambda: forged(iat=datetime.now(UTC) + timedelta(hours=1)),
    "without an end": lambda: forged(exp=None),
    "without a name": lambda: forged(jti=None),
    "of another generation": lambda: forged(gen=2),
    "of nobody": lambda: forged(sub="nobody"),
    "with an unknown role": lambda: forged(role="root"),
    "of the run, as an admin": lambda: forged(sub="flead-run", gen=0),
    "no token": lambda: "x.y.z",
    "no key": lambda: new_key().key,
}


@pytest.mark.parametrize("kind", TOKENS)
def test_tokens_that_do_not_hold(server: Server, kind: str) -> None:
    token = TOKENS[kind]()
    refused(server.http.get("/api/audit", headers={"Authorization": f"Bearer {token}"}), 401)
    entry = server.noted()[0]
    assert (entry["who"], entry["target"], entry["address"]) == ("?", "GET /api/audit", "127.0.0.1")
    assert entry["outcome"].startswith("refused")


@pytest.mark.parametrize("length", [0, 31])
def test_a_secret_that_could_be_guessed_signs_nothing(length: int) -> None:
    with pytest.raises(CorruptRunFolder, match="token-secret"):
        Tokens(SecretStr("x" * length))


def test_the_same_token_unforged_holds(server: Server) -> None:
    assert server.http.get("/api/audit", headers={"Authorization": f"Bearer {forged()}"}).status_code == 200


def test_the_run_itself_may_look(server: Server) -> None:
    headers = {"Authorization": f"Bearer {of_the_run(SECRET)}"}
    assert server.http.get("/api/status", headers=headers).status_code == 200
    refused(server.http.post("/api/aggregate", headers=headers), 403)


def test_a_role_is_what_the_user_has_and_not_what_his_token_says(server: Server) -> None:
    headers = {"Authorization": f"Bearer {forged(sub='viewer', role='admin')}"}
    refused(server.http.get("/api/audit", headers=headers), 403)


@pytest.mark.parametrize("change", ["password", "removed"])
def test_a_user_who_was_changed_must_log_in_again(server: Server, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "REFRESH_S", 0.05)
    headers = server.token("operator")
    if change == "removed":
        server.repository.remove_user("operator")
    else:
        server.repository.set_password("operator", hashed("another password"))
    wait_until(lambda: server.http.get("/api/status", headers=headers).status_code == 401)
    refused(server.http.post("/api/token", json={"username": "operator", "password": PASSWORD}), 401)


def test_a_log_in_as_json_or_as_a_form(server: Server) -> None:
    given = {"username": "viewer", "password": PASSWORD}
    for answer in (
        server.http.post("/api/token", json=given),
        server.http.post("/api/token", data=given | {"grant_type": "password"}),
    ):
        assert answer.json().items() >= {"token_type": "bearer", "role": "viewer"}.items()
        assert 840 < answer.json()["expires_in"] <= 900
        assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(("name", "noted"), [("viewer", "viewer"), ("a password, typed too early", "?")])
def test_a_wrong_log_in_says_not_what_was_wrong(server: Server, name: str, noted: str) -> None:
    answer = server.http.post("/api/token", json={"username": name, "password": "wrong password"})
    assert refused(answer, 401)["detail"] == "wrong name or password"
    assert server.noted("log in")[0]["who"] == noted


def test_a_password_does_not_come_back_in_an_answer(server: Server) -> None:
    answer = server.http.post("/api/token", json={"password": ["my secret"]})
    problem(answer, 422)
    assert "my secret" not in answer.text


def test_guessing_passwords_ends_soon(mongo: Mongo) -> None:
    AccessRepository(mongo.database).add_user("viewer", "viewer", KEPT)
    with serving(mongo, logins_per_minute=3) as server:
        tried = [server.http.post("/api/token", json={"username": "viewer", "password": "x"}) for _ in range(4)]
        assert [answer.status_code for answer in tried] == [401, 401, 401, 429]
        assert 1 <= int(tried[-1].headers["retry-after"]) <= 60
        right = server.http.post("/api/token", json={"username": "viewer", "password": PASSWORD})
        problem(right, 429)


def test_a_device_that_sends_too_often_waits(mongo: Mongo) -> None:
    AccessRepository(mongo.database).add_user("admin", "admin", KEPT)
    with serving(mongo, updates_per_minute=2) as server:
        key, other = server.key("pump-1"), server.key("pump-2")
        statuses = [server.send("pump-1", key).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert server.send("pump-2", other).status_code == 200


def test_refusals_beyond_so_many_are_not_noted(server: Server) -> None:
    answers = [server.http.get("/api/status").status_code for _ in range(REFUSALS_PER_MINUTE + 3)]
    assert set(answers[:REFUSALS_PER_MINUTE]) == {401}
    assert set(answers[REFUSALS_PER_MINUTE:]) == {429}
    assert len(server.log.newest(1_000)) == REFUSALS_PER_MINUTE


@dataclass
class Signer:
    """A device that signs."""

    private: Ed25519PrivateKey

    @property
    def public(self) -> str:
        raw = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return base64.b64encode(raw).decode()

    def sign(self, raw: bytes) -> str:
        return base64.b64encode(self.private.sign(raw)).decode()


@pytest.mark.parametrize("access", ["open", "required"])
def test_a_device_that_signs_is_not_impersonated(mongo: Mongo, access: str) -> None:
    """Whoever has its key, and an administrator too, lacks its private key."""
    AccessRepository(mongo.database).add_user("admin", "admin", KEPT)
    device, thief = Signer(Ed25519PrivateKey.generate()), Signer(Ed25519PrivateKey.generate())
    with serving(mongo, access=access) as server:
        key = server.key("pump-1", public_key=device.public)
        first, second = (json.dumps(body("pump-1", metadata={"samples_seen": n})).encode() for n in (100, 50))

        def send(raw: bytes, signature: str | None) -> httpx.Response:
            signed = {"X-Signature": signature} if signature is not None else {}
            return server.http.post("/api/local-update", content=raw, headers=key | signed)

        for wrong in (None, "", "?", thief.sign(first), device.sign(second), device.sign(first)[:-8]):
            refused(send(first, wrong), 401)
            entry = server.noted("update.send")[0]
            assert entry["target"] == "pump-1"
            assert "X-Signature" in entry["outcome"]
        unsigned_by_admin = server.http.post("/api/local-update", content=first, headers=server.token("admin"))
        refused(unsigned_by_admin, 401)
        assert send(first, device.sign(first)).json()["status"] == "accepted"
        for replayed in (first, second):  # the same, and an older one
            assert send(replayed, device.sign(replayed)).json()["status"] == "duplicate"
            assert server.noted("update.send")[0]["outcome"].startswith("ignored")
        assert server.http.get("/api/status", headers=server.token("admin")).json()["pending_updates"] == 1


def test_a_public_key_must_be_one(server: Server) -> None:
    for text in ("", "short", base64.b64encode(b"x" * 31).decode()):
        answer = server.http.post(
            "/api/keys", json={"device_id": "a", "public_key": text}, headers=server.token("admin")
        )
        problem(answer, 422)


def test_the_audit_log_comes_in_pages(server: Server) -> None:
    admin = server.token("admin")
    for n in range(5):
        server.key(f"pump-{n}")
    seen: list[str] = []
    before: dict[str, str] = {}
    while True:
        page = server.http.get("/api/audit", params={"limit": 3, **before}, headers=admin).json()
        seen += [entry["id"] for entry in page["entries"]]
        if page["next"] is None:
            break
        before = {"before": page["next"]}
    whole = server.http.get("/api/audit", headers=admin).json()["entries"]
    assert seen == [entry["id"] for entry in whole]
    assert sorted(seen, reverse=True) == seen
    assert len(set(seen)) == len(seen)


def test_a_large_body_is_refused_wherever_it_goes(server: Server) -> None:
    big = b'{"device_id": "' + b"x" * 2_000_000 + b'"}'
    for path in ("/api/keys", "/api/token", "/api/session", "/api/local-update"):
        problem(server.http.post(path, content=big, headers=server.token("admin")), 413)


def test_a_session_in_a_browser(mongo: Mongo) -> None:
    AccessRepository(mongo.database).add_user("operator", "operator", KEPT)
    with serving(mongo, site="/console") as server:
        http, given = server.http, {"username": "operator", "password": PASSWORD}
        ours = {"Origin": str(http.base_url).rstrip("/")}
        for path in ("/console", "/console/device/pump-1"):
            sent = http.get(path, headers=BROWSER)
            assert (sent.status_code, sent.headers["location"]) == (303, f"/login?next={path}")
            problem(http.get(path), 401)
        assert 'type="password"' in http.get("/login", params={"next": "/console"}).text
        odd = "/console/device/50%25%20%3F%23%26x"  # a device called `50% ?#&x`
        asked = http.get(odd, headers=BROWSER).headers["location"]
        assert f'action="{escape(asked)}"' in http.get(asked).text
        assert http.post(asked, data=given, headers=ours).headers["location"] == odd
        http.cookies.clear()
        wrong = http.post("/login", data=given | {"password": "x" * 12}, headers=ours)
        assert (wrong.status_code, "wrong name or password" in wrong.text) == (401, True)
        elsewhere = {"Origin": "https://elsewhere.example"}
        problem(http.post("/api/session", json=given, headers=elsewhere), 403)
        entered = http.post("/login", params={"next": "//elsewhere.example"}, data=given, headers=ours)
        assert (entered.status_code, entered.headers["location"]) == (303, "/console")
        cookie = entered.headers["set-cookie"].lower()
        assert all(part in cookie for part in (COOKIE, "httponly", "samesite=strict", "path=/"))
        assert http.get("/console", headers=BROWSER).status_code == 404, "let through; there are no pages in this test"
        assert http.get("/api/session").json() == {"name": "operator", "role": "operator"}
        assert http.post("/api/aggregate", headers=ours).status_code == 200
        for foreign in ({}, elsewhere, {"Origin": "null"}):
            problem(http.post("/api/aggregate", headers=foreign), 403)
        upgrade = {
            "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }  # fmt: skip
        assert http.get("/console/socket", headers=upgrade | elsewhere).status_code == 403
        entry = server.noted()[0]
        assert (entry["who"], entry["target"]) == ("operator", "/console/socket")
        assert entry["outcome"] == "refused: a page of another site asks"
        kept = {"Cookie": f"{COOKIE}={http.cookies[COOKIE]}"}
        assert http.delete("/api/session", headers=ours).status_code == 204
        problem(http.get("/api/session"), 401)
        said = problem(http.get("/api/session", headers=kept), 401)["detail"]
        assert said == "who had this token logged out: log in again"
        assert [entry["who"] for entry in server.noted("log out")] == ["operator"]
        assert http.delete("/api/session", headers=kept).status_code == 204, "again, and nothing happens"
        assert len(server.noted("log out")) == 1


def test_logging_out_ends_one_token_of_a_user_and_no_other(server: Server) -> None:
    ended, other = server.token("viewer"), server.token("viewer")
    cookie = {"Cookie": f"{COOKIE}={ended['Authorization'].removeprefix('Bearer ')}"}
    for shown in ({}, other, {"Cookie": f"{COOKIE}=x"}, cookie):
        assert server.http.delete("/api/session", headers=shown).status_code == 204
    refused(server.http.get("/api/status", headers=ended), 401)
    assert server.http.get("/api/status", headers=other).status_code == 200


def test_open_access_is_for_this_machine_and_no_page_of_another_site(mongo: Mongo) -> None:
    with serving(mongo, access="open") as server:
        http, own = server.http, str(server.http.base_url).rstrip("/")
        for headers in ({}, {"Origin": own}, {"Host": "localhost"}, {"Host": "[::1]:8000"}, {"Host": "127.0.0.2:9"}):
            assert http.post("/api/aggregate", headers=headers).status_code == 200, headers
        for headers in ({"Origin": "https://elsewhere.example"}, {"Origin": "null"}, {"Host": "rebound.example"},
                        {"Host": "127.0.0.1.rebound.example"}, {"Host": ""}, {"Host": "[::1"}):  # fmt: skip
            for method, path in (("POST", "/api/aggregate"), ("GET", "/api/status"), ("GET", "/docs")):
                problem(http.request(method, path, headers=headers), 403)


def test_health_and_figures(server: Server) -> None:
    assert server.http.get("/healthz").json() == server.http.get("/readyz").json() == {"status": "ok"}
    admin = server.token("admin")
    server.http.post("/api/aggregate", headers=admin)
    for device, metadata in (("a", {}), ("a", {}), ("b", {"base_version": 7})):
        server.send(device, admin, metadata=metadata)
    server.http.get("/nowhere/at/all")
    answer = server.http.get("/metrics", headers=admin)
    assert answer.headers["content-type"].startswith("text/plain")
    for line in (
        'flead_requests_total{method="POST",route="/api/local-update",status="200"} 2.0',
        'flead_updates_total{outcome="accepted",reason=""} 1.0',
        'flead_updates_total{outcome="duplicate",reason=""} 1.0',
        'flead_updates_total{outcome="refused",reason="bad_update"} 1.0',
        "flead_rounds_total 0.0",
        'flead_requests_total{method="GET",route="other",status="404"} 1.0',
        'flead_pending_updates{cohort="default"} 1.0',
        'flead_up{part="mongodb"} 1.0',
        'flead_up{part="kafka"} 0.0',
    ):
        assert line in answer.text.splitlines(), line
    assert 'flead_request_seconds_count{route="/api/local-update"} 3.0' in answer.text
    server.http.post("/api/aggregate", headers=admin)
    again = server.http.get("/metrics", headers=admin).text.splitlines()
    assert {"flead_rounds_total 1.0", 'flead_model_version{cohort="default"} 1.0'} <= set(again)
    assert "flead_round_seconds_count 1.0" in again


def test_prometheus_has_a_token_of_its_own(mongo: Mongo) -> None:
    with serving(mongo, scrape_token="for prometheus only") as server:  # noqa: S106
        headers = {"Authorization": "Bearer for prometheus only"}
        assert server.http.get("/metrics", headers=headers).status_code == 200
        refused(server.http.get("/api/status", headers=headers), 401)
        refused(server.http.get("/metrics", headers={"Authorization": "Bearer for prometheus onlY"}), 401)


def test_the_docs_need_nothing_from_elsewhere(server: Server) -> None:
    answer = server.http.get("/docs", headers=server.token("viewer"))
    assert "/api/local-update" in answer.text
    assert "http://" not in answer.text
    assert "https://" not in answer.text
    assert "<script" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
