"""Credentials: tokens and sessions of users, keys of devices; and the audit log."""

# No `annotations` from `__future__`: FastAPI must see the guard's own dependencies.

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, NamedTuple, TypeVar
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, SecretStr, StrictBool, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response

from flead.errors import Forbidden, Unavailable
from flead.messages import Name
from global_server.access.audit import Audit
from global_server.access.guard import COOKIE, Guard, is_same_site
from global_server.access.keys import check_public_key, new_key
from global_server.access.passwords import LONGEST
from global_server.access.roles import Principal, Role
from global_server.answers import (
    AuditAnswer,
    AuditEntryAnswer,
    KeyEntry,
    KeysAnswer,
    NewKeyAnswer,
    TokenAnswer,
    WhoAnswer,
)
from global_server.routes.describing import SCHEMAS, problems
from storage.access import StoredKey

T = TypeVar("T")
_FORM = "application/x-www-form-urlencoded"


class Credentials(BaseModel):
    """Who logs in; of OAuth 2's other fields (RFC 6749, section 4.3.2) none matters here."""

    username: str = Field(min_length=1, max_length=128)
    password: SecretStr = Field(min_length=1, max_length=LONGEST)


class KeyRequest(BaseModel):
    """For which device a key is made, and what it lets the device do."""

    device_id: Name
    aggregator: StrictBool = Field(default=False, description="it may send updates of other devices, too")
    public_key: str | None = Field(
        default=None, max_length=100, description="Ed25519, base64: from now on the device's updates must be signed"
    )


class LoggedIn(NamedTuple):
    """What a log-in gives."""

    token: str
    until: datetime
    role: Role
    name: str


_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {form: {"schema": {"$ref": SCHEMAS + "Credentials"}} for form in ("application/json", _FORM)},
    }
}


def routes(guard: Guard, audit: Audit) -> APIRouter:
    """Make the router; without repositories there are no users, keys or entries, and it says so."""
    router = APIRouter(tags=["access"])

    @router.post(
        "/api/token",
        operation_id="log_in",
        openapi_extra=_BODY,
        responses=problems(400, 401, 403, 413, 422, 429, 503),
    )
    async def token(request: Request, response: Response) -> TokenAnswer:
        """Give a token for a user's name and password, as JSON or as a form; send it as `Authorization: Bearer`."""
        found = await log_in(guard, request, timedelta(minutes=guard.settings.token_minutes))
        response.headers["Cache-Control"] = "no-store"
        return TokenAnswer(access_token=found.token, expires_in=_seconds_to(found.until), role=found.role)

    @router.post(
        "/api/session",
        operation_id="begin_session",
        openapi_extra=_BODY,
        responses=problems(400, 401, 403, 413, 422, 429, 503),
    )
    async def begin(request: Request, response: Response) -> WhoAnswer:
        """Log in with a cookie, as the console's log-in page does; no page's script can read it."""
        found = await log_in(guard, request, timedelta(hours=guard.settings.session_hours))
        set_cookie(request, response, found)
        return WhoAnswer(name=found.name, role=found.role)

    @router.get(
        "/api/session",
        operation_id="who_am_i",
        responses=problems(401, 403, 429, 503),
    )
    async def who_am_i(who: Annotated[Principal, Depends(guard.anyone)]) -> WhoAnswer:
        """Say who asks."""
        return WhoAnswer(name=who.name, role=who.role)

    @router.delete("/api/session", operation_id="end_session", status_code=204, responses=problems(403))
    async def end(request: Request, response: Response) -> None:
        """Log out: the cookie is forgotten, and the token in it holds no longer."""
        if guard.required and "origin" in request.headers and not is_same_site(request.headers):
            raise Forbidden("a page of another site asks")
        await run_in_threadpool(guard.log_out, request)
        response.delete_cookie(COOKIE, path="/")

    @router.post(
        "/api/keys",
        operation_id="make_key",
        status_code=201,
        responses=problems(400, 401, 403, 413, 422, 429, 503),
    )
    def make_key(
        wanted: KeyRequest, who: Annotated[Principal, Depends(guard.admin)], response: Response
    ) -> NewKeyAnswer:
        """Make a key for a device. It is shown here and never again: only its hash is kept."""
        public_key = check_public_key(wanted.public_key) if wanted.public_key is not None else None
        made = new_key()
        stored = _there(guard.repository).add_key(
            made.key_id, wanted.device_id, made.sha256, who.name, aggregator=wanted.aggregator, public_key=public_key
        )
        guard.refresh()
        signs = public_key is not None
        audit.note(
            who.name, "key.make", wanted.device_id, key_id=made.key_id, aggregator=wanted.aggregator, signs=signs
        )
        response.headers["Cache-Control"] = "no-store"
        return NewKeyAnswer(**_fields(stored), key=made.key)

    @router.get(
        "/api/keys",
        operation_id="list_keys",
        dependencies=[Depends(guard.admin)],
        responses=problems(401, 403, 422, 429, 503),
    )
    def list_keys(
        device_id: Annotated[str | None, Query(description="of one device only")] = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000,
    ) -> KeysAnswer:
        """List keys by device, revoked ones too."""
        return KeysAnswer(
            keys=[KeyEntry(**_fields(key)) for key in _there(guard.repository).list_keys(device_id, limit)]
        )

    @router.delete(
        "/api/keys/{key_id}",
        operation_id="revoke_key",
        responses=problems(401, 403, 404, 422, 429, 503),
    )
    def revoke_key(key_id: str, who: Annotated[Principal, Depends(guard.admin)]) -> KeyEntry:
        """Let a key hold no longer, from now on."""
        revoked = _there(guard.repository).revoke_key(key_id)
        if revoked is None:
            raise HTTPException(404, f"there is no key {key_id[:64]!r}: GET /api/keys lists them")
        guard.refresh()
        audit.note(who.name, "key.revoke", revoked.device_id, key_id=key_id)
        return KeyEntry(**_fields(revoked))

    @router.get(
        "/api/audit",
        operation_id="audit_log",
        dependencies=[Depends(guard.admin)],
        responses=problems(401, 403, 422, 429, 503),
    )
    def read_audit(
        limit: Annotated[int, Query(ge=1, le=1_000, description="newest entries")] = 100,
        before: Annotated[str | None, Query(max_length=64, description="`next` of the page before")] = None,
    ) -> AuditAnswer:
        """Say who did what, newest first."""
        found = _there(audit.repository).newest(limit + 1, before)
        entries = [AuditEntryAnswer.model_validate({**entry, "id": entry["_id"]}) for entry in found[:limit]]
        return AuditAnswer(entries=entries, next=entries[-1].id if len(found) > limit else None)

    return router


async def log_in(guard: Guard, request: Request, lasts: timedelta) -> LoggedIn:
    """Hold the name and password of a request's body against the users; raises what `Guard.log_in` does."""
    if "origin" in request.headers and not is_same_site(request.headers):
        raise Forbidden("a page of another site asks")
    given = _credentials(await request.body(), request.headers.get("content-type", ""))
    address = request.client.host if request.client else "?"
    name, password = given.username, given.password.get_secret_value()
    token, until, role = await run_in_threadpool(guard.log_in, name, password, lasts, address)
    return LoggedIn(token, until, role, name)


def set_cookie(request: Request, response: Response, found: LoggedIn) -> None:
    """Leave the token in the browser, where no page's script can read it, and no other site's page can use it."""
    response.headers["Cache-Control"] = "no-store"
    response.set_cookie(
        COOKIE, found.token, max_age=_seconds_to(found.until), path="/", secure=request.url.scheme == "https",
        httponly=True, samesite="strict",
    )  # fmt: skip


def _credentials(raw: bytes, content_type: str) -> Credentials:
    """Read a form, or else JSON."""
    try:
        if content_type.partition(";")[0].strip().lower() == _FORM:
            fields = parse_qs(raw.decode(errors="replace"), keep_blank_values=True, max_num_fields=20)
            return Credentials.model_validate({name: values[-1] for name, values in fields.items()})
        return Credentials.model_validate_json(raw)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)  # a password must not come back in an answer
        raise RequestValidationError(found) from None
    except ValueError:
        raise RequestValidationError([{"loc": (), "msg": "too many fields", "type": "too_many"}]) from None


def _seconds_to(until: datetime) -> int:
    return max(1, round((until - datetime.now(UTC)).total_seconds()))


def _there(repository: T | None) -> T:
    if repository is None:
        raise Unavailable("this server was started without a database of users and keys")
    return repository


def _fields(key: StoredKey) -> dict[str, Any]:
    return {name: getattr(key, name) for name in KeyEntry.model_fields}
