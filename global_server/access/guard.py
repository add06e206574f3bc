"""Asks who somebody is, and refuses who may not.

A user shows a token (`Authorization: Bearer ...`, or the cookie that a log-in in the browser left), a device its key
(`X-Device-Key: ...`, or as a bearer). What is refused is noted in the audit log, up to so many a minute of one address.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from fastapi import Request
from pydantic import SecretStr
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from config.settings import ServerSettings
from flead.errors import BadCredentials, Forbidden, Refused, TooOften
from global_server.access import passwords
from global_server.access.audit import Audit
from global_server.access.keys import PREFIX, fingerprint, signed_by
from global_server.access.known import Known
from global_server.access.limits import Limits
from global_server.access.roles import LOCAL, Principal, Role
from global_server.access.tokens import OF_THE_RUN, Tokens
from storage.access import AccessRepository

COOKIE = "flead_session"
NOBODY = "?"
"""Who asks, in the audit log, where nobody knows."""
REFUSALS_PER_MINUTE = 120
"""Of one address: what comes on top is refused as well, and not noted."""
REPEATS_PER_MINUTE = 60
"""Repeated updates of one address that are noted."""

SAFE = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing."""


class Guard:
    """Who somebody is, as dependencies of FastAPI: `who: Annotated[Principal, Depends(guard.operator)]`.

    Modules that write this inside a function must not import `annotations` from `__future__`: FastAPI would look for
    `guard` among the module's names.

    Parameters
    ----------
    settings:
        whether credentials are required, how long tokens hold, and how often one may ask
    repository:
        users and keys; None: there are none, and access is open
    secret:
        signs tokens; None: one that ends with the process
    clock:
        gives the present, aware
    """

    def __init__(
        self,
        audit: Audit,
        settings: ServerSettings | None = None,
        repository: AccessRepository | None = None,
        secret: SecretStr | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.settings = settings or ServerSettings()
        self.required = self.settings.access == "required"
        self.tokens = Tokens(secret or SecretStr(secrets.token_urlsafe(32)), clock)
        self.limits = Limits()
        self.repository = repository
        self._audit = audit
        self._known = Known(repository) if repository else None
        if self.required and not self._known:
            raise ValueError("credentials are required, and there is nothing to hold them against")

    async def viewer(self, request: Request) -> Principal:
        """Somebody who may see everything and change nothing."""
        return await self._with_role(request, Role.VIEWER)

    async def operator(self, request: Request) -> Principal:
        """Somebody who may run the federation: rounds, models, quarantine."""
        return await self._with_role(request, Role.OPERATOR)

    async def admin(self, request: Request) -> Principal:
        """Somebody who may do everything."""
        return await self._with_role(request, Role.ADMIN)

    async def device(self, request: Request) -> Principal:
        """Somebody who may send updates: a device with a key, or an administrator."""
        if self._known and self._known.is_old():  # `admit` must not wait for MongoDB
            await run_in_threadpool(self._known.refresh)
        return await self._with_role(request, Role.DEVICE, Role.ADMIN)

    async def anyone(self, request: Request) -> Principal:
        """Somebody whom we know: a device or a user."""
        return await self._with_role(request, Role.DEVICE, Role.VIEWER)

    async def scraper(self, request: Request) -> Principal:
        """Who may read the metrics: a viewer, or whoever shows `server.scrape_token`."""
        expected = self.settings.scrape_token
        shown = _bearer(request)
        if expected and shown and secrets.compare_digest(shown.encode(), expected.get_secret_value().encode()):
            return Principal("prometheus", Role.VIEWER)
        return await self._with_role(request, Role.VIEWER)

    async def somebody(self, connection: HTTPConnection) -> Principal:
        """Somebody whom we know, whatever they may."""
        try:
            return await self.identify(connection)
        except BadCredentials as error:
            target = f"{connection.scope['method']} {connection.url.path}"
            await run_in_threadpool(self._refuse, None, target, error, _address(connection))
            raise

    async def visitor(self, connection: HTTPConnection) -> Principal:
        """Somebody who may see the pages for people, sent there by no page of another site where more is asked."""
        who = None
        try:
            who = await self.identify(connection)
            _check_visitor(who, connection)
        except (BadCredentials, Forbidden) as error:
            if who or _shown(connection):  # else it is somebody who has yet to log in
                await run_in_threadpool(self._refuse, who, connection.url.path, error, _address(connection))
            raise
        return who

    async def _with_role(self, request: Request, *roles: Role) -> Principal:
        """Say who asks, if that is somebody of one of the roles."""
        if not self.required:
            return LOCAL
        who = None
        try:
            who = await self.identify(request)
            self._count(who)
            _check_origin(request)
            _check_role(who, roles)
        except (BadCredentials, Forbidden) as error:
            await run_in_threadpool(self._refuse, who, f"{request.method} {request.url.path}", error, _address(request))
            raise
        return who

    async def identify(self, connection: HTTPConnection) -> Principal:
        """Say who asks, whatever they may.

        Raises
        ------
        BadCredentials
            where nothing says so, or what does no longer holds
        Unavailable
            where MongoDB never answered
        """
        if not self.required:
            return LOCAL
        known = await self._fresh()
        key = connection.headers.get("x-device-key")
        shown = _bearer(connection)
        if key or (shown and shown.startswith(PREFIX)):
            return _of_key(known, key or shown or "")
        token = _shown(connection)
        if not token:
            raise BadCredentials("this takes a token (POST /api/token) or a device's key")
        return self._of_token(known, token)

    async def _fresh(self) -> Known:
        known = self._known
        assert known  # noqa: S101  # access is required
        if known.is_old():
            await run_in_threadpool(known.refresh)
        return known

    def _of_token(self, known: Known, token: str) -> Principal:
        claims = self.tokens.read(token)
        if (claims.name, claims.role, claims.generation) == (OF_THE_RUN, Role.VIEWER, 0):
            return Principal(OF_THE_RUN, Role.VIEWER)
        user = known.user(claims.name)
        if user is None or user.generation != claims.generation:
            raise BadCredentials("the user of this token was changed or removed: log in again")
        return Principal(user.name, Role(user.role))

    def _count(self, who: Principal) -> None:
        """Count a request; raises `TooOften`."""
        settings = self.settings
        if who.role is not Role.DEVICE:
            self.limits.hit("requests", who.name, settings.requests_per_minute)
        elif who.aggregator:
            self.limits.hit("requests of an aggregator", who.name, settings.aggregator_updates_per_minute)
        else:
            self.limits.hit("requests of a device", who.name, settings.updates_per_minute)

    def _refuse(self, who: Principal | None, target: str, error: Refused, address: str) -> None:
        """Note a refusal; raises `TooOften` where there are too many from one address to note them all."""
        self.limits.hit("refused requests", address, REFUSALS_PER_MINUTE)
        self._audit.note(who.name if who else NOBODY, "access", target[:200], f"refused: {error}"[:300])

    def log_in(self, name: str, password: str, lasts: timedelta, address: str) -> tuple[str, datetime, Role]:
        """Hold a password against a user's; returns a token, when it ends, and the user's role.

        It takes as long for a user whom nobody knows. It takes tens of milliseconds: call it from a thread.

        Raises
        ------
        BadCredentials
            without saying which of both was wrong
        TooOften
            after so many attempts within a minute, from one address or for one user
        """
        self.limits.hit("attempts to log in", f"from {address}", self.settings.logins_per_minute)
        self.limits.hit("attempts to log in", f"as {name}", 5 * self.settings.logins_per_minute)
        if self._known:
            self._known.refresh(at_once=True)
        user = self._known.user(name) if self._known else None
        if not passwords.holds(password, user.password if user else None) or user is None:
            # A name that nobody has may be a password, typed into the wrong field.
            self._audit.note(user.name if user else NOBODY, "log in", "", "refused: wrong name or password")
            raise BadCredentials("wrong name or password")
        self._audit.note(name, "log in", "")
        token, until = self.tokens.make(user.name, Role(user.role), user.generation, lasts)
        return token, until, Role(user.role)

    def log_out(self, connection: HTTPConnection) -> None:
        """End the token of somebody's cookie, where there is one. It is noted: call it from a thread."""
        token = connection.cookies.get(COOKIE)
        with suppress(BadCredentials):
            if token:
                self._audit.note(self.tokens.end(token).name, "log out", "")

    def admit(self, who: Principal, device_id: str, raw: bytes, signature: str | None) -> None:
        """Refuse an update that is not the sender's own, or not signed by its device where that one signs.

        It waits for MongoDB only where it refuses, to note it.

        Parameters
        ----------
        raw:
            the body as it came, before it was unpacked
        signature:
            the header `X-Signature`: base64 of Ed25519's 64 bytes

        Raises
        ------
        Forbidden
            where the sender may not send for this device
        BadCredentials
            where the signature is missing or wrong
        """
        try:
            _check_device(who, device_id)
            self._check_signature(device_id, raw, signature)
        except (BadCredentials, Forbidden) as error:
            self._audit_limited(who, "update.send", device_id, f"refused: {error}", REFUSALS_PER_MINUTE)
            raise

    def _check_signature(self, device_id: str, raw: bytes, signature: str | None) -> None:
        public_keys = self._known.public_keys(device_id) if self._known else ()
        if not public_keys:
            return
        if signature is None:
            raise BadCredentials(f"{device_id!r} signs its updates: X-Signature is missing")
        if not any(signed_by(key, raw, signature) for key in public_keys):
            raise BadCredentials(f"X-Signature is not {device_id!r}'s, or not of this body")

    def note_repeat(self, who: Principal, device_id: str) -> None:
        """Note that an update came again, or an older one: it was not counted. Harmless, unless it was replayed."""
        self._audit_limited(who, "update.send", device_id, "ignored: it came before, or is older", REPEATS_PER_MINUTE)

    def _audit_limited(self, who: Principal, action: str, target: str, outcome: str, per_minute: int) -> None:
        try:
            self.limits.hit(f"notes of {outcome[:7]}", who.name, per_minute)
        except TooOften:
            return
        self._audit.note(who.name, action, target, outcome[:300])

    def refresh(self) -> None:
        """Take up at once what was just changed."""
        if self._known:
            self._known.refresh(at_once=True)


def _of_key(known: Known, shown: str) -> Principal:
    key = known.key(fingerprint(shown))
    if key is None:
        raise BadCredentials("no such key, or it was revoked: an administrator makes new ones (`flead keys add`)")
    return Principal(key.device_id, Role.DEVICE, key.aggregator, key.key_id)


def _check_role(who: Principal, roles: tuple[Role, ...]) -> None:
    if not any(who.may(role) for role in roles):
        raise Forbidden(f"{who.name} is {who.role}; this takes {' or '.join(roles)}")


def _check_visitor(who: Principal, connection: HTTPConnection) -> None:
    if not who.may(Role.VIEWER):
        raise Forbidden(f"{who.name} is {who.role}: the pages are for people")
    reads = connection.scope["type"] == "http" and connection.scope["method"] in SAFE
    if not reads and not is_same_site(connection.headers):
        raise Forbidden("a page of another site asks")


def _check_device(who: Principal, device_id: str) -> None:
    if who.role is Role.DEVICE and who.name != device_id and not who.aggregator:
        raise Forbidden(f"the key is {who.name!r}'s, the update {device_id!r}'s")


def _bearer(connection: HTTPConnection) -> str | None:
    scheme, _, value = connection.headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else None


def _shown(connection: HTTPConnection) -> str | None:
    """The token that somebody shows, if any."""
    return _bearer(connection) or connection.cookies.get(COOKIE)


def _check_origin(request: Request) -> None:
    """Refuse what a page of another site makes a browser do with the cookie of its user."""
    shows_itself = _bearer(request) or request.headers.get("x-device-key")
    if not shows_itself and request.method not in SAFE and not is_same_site(request.headers):
        raise Forbidden("a page of another site asks: with the cookie only our own pages may")


def is_same_site(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that a page of this very server asks.

    >>> is_same_site({"host": "flead.example", "origin": "https://flead.example"})
    True
    >>> is_same_site({"host": "flead.example", "origin": "https://elsewhere.example"}), is_same_site({"host": "a"})
    (False, False)
    """
    return bool(headers.get("host")) and urlsplit(headers.get("origin", "")).netloc == headers.get("host")


def _address(connection: HTTPConnection) -> str:
    return connection.client.host if connection.client else NOBODY
