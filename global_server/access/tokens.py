"""Users' tokens: JSON Web Tokens (RFC 7519), signed with HS256 by a secret of the run folder, and no other way."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from pydantic import SecretStr

from flead.errors import BadCredentials, CorruptRunFolder
from global_server.access.roles import Role

ALGORITHM = "HS256"
ISSUER, AUDIENCE = "flead", "flead-global-server"
SECRET_FILE = Path("server", "token-secret")
"""Where in the run folder the secret is kept. Without this file every token is worthless: delete it to end them all."""
SHORTEST = 32
"""Characters of the secret."""
OF_THE_RUN = "flead-run"
"""Who the run itself is, for `flead up` watches the server; he is no user, and only a viewer."""

_CLAIMS = ["iss", "aud", "sub", "iat", "exp", "jti", "role", "gen"]


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says: its own id, whose it is, and which generation of him."""

    token_id: str
    name: str
    role: Role
    generation: int
    expires: datetime


class Tokens:
    """Makes, reads and ends tokens. Safe to use from many threads.

    What was ended is kept in memory until it would have been over: a restart forgets it.

    Parameters
    ----------
    secret:
        of 256 bits or more (RFC 7518, section 3.2): a shorter one can be found by trying
    clock:
        gives the present, aware, to what is made; what is read is held against the machine's clock

    Raises
    ------
    CorruptRunFolder
        where the secret is too short
    """

    def __init__(self, secret: SecretStr, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        if len(secret.get_secret_value()) < SHORTEST:
            raise CorruptRunFolder(
                f"{SECRET_FILE} in the run folder has fewer than {SHORTEST} characters: "
                "delete it, and the server makes another"
            )
        self._secret = secret
        self._clock = clock
        self._lock = threading.Lock()
        self._ended: dict[str, datetime] = {}

    def make(self, name: str, role: Role, generation: int, lasts: timedelta) -> tuple[str, datetime]:
        """Make a token; returns when it ends, too."""
        now = self._clock().replace(microsecond=0)
        claims: dict[str, Any] = {"iss": ISSUER, "aud": AUDIENCE, "sub": name, "role": role.value, "gen": generation}
        claims |= {"iat": now, "exp": now + lasts, "jti": secrets.token_hex(16)}
        return jwt.encode(claims, self._secret.get_secret_value(), ALGORITHM), now + lasts

    def read(self, token: str) -> Claims:
        """Read a token.

        Raises
        ------
        BadCredentials
            where it is not ours, was changed, was ended, or is over

        >>> tokens = Tokens(SecretStr("x" * 32))
        >>> tokens.read(tokens.make("ada", Role.VIEWER, 1, timedelta(minutes=1))[0]).name
        'ada'
        >>> Tokens(SecretStr("y" * 32)).read(tokens.make("ada", Role.ADMIN, 1, timedelta(minutes=1))[0])
        Traceback (most recent call last):
        flead.errors.BadCredentials: the token is none of ours: log in again
        """
        try:
            found = jwt.decode(
                token, self._secret.get_secret_value(), [ALGORITHM], {"require": _CLAIMS},
                audience=AUDIENCE, issuer=ISSUER,
            )  # fmt: skip
            expires = datetime.fromtimestamp(found["exp"], UTC)
            claims = Claims(str(found["jti"]), str(found["sub"]), Role(found["role"]), int(found["gen"]), expires)
        except jwt.ExpiredSignatureError:
            raise BadCredentials("the token is over: log in again") from None
        except (jwt.InvalidTokenError, ValueError, TypeError):
            raise BadCredentials("the token is none of ours: log in again") from None
        if claims.token_id in self._ended:
            raise BadCredentials("who had this token logged out: log in again")
        return claims

    def end(self, token: str) -> Claims:
        """Let a token hold no longer; returns what it said. Raises `BadCredentials` where it does not hold.

        >>> tokens = Tokens(SecretStr("x" * 32))
        >>> token, _ = tokens.make("ada", Role.VIEWER, 1, timedelta(minutes=1))
        >>> tokens.end(token).name
        'ada'
        >>> tokens.read(token)
        Traceback (most recent call last):
        flead.errors.BadCredentials: who had this token logged out: log in again
        """
        claims, now = self.read(token), datetime.now(UTC)
        with self._lock:
            self._ended = {known: until for known, until in self._ended.items() if until > now}
            self._ended[claims.token_id] = claims.expires
        return claims


def of_the_run(secret: SecretStr, lasts: timedelta = timedelta(days=1)) -> str:
    """Make a viewer's token for the process that keeps a run: it reads the same run folder."""
    return Tokens(secret).make(OF_THE_RUN, Role.VIEWER, 0, lasts)[0]
