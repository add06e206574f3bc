"""Users' tokens: JSON Web Tokens (RFC 7519), signed with HS256 by a secret of the run folder, and no other way."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from pydantic import SecretStr

from flead.errors import BadCredentials
from global_server.access.roles import Role

ALGORITHM = "HS256"
ISSUER, AUDIENCE = "flead", "flead-global-server"
SECRET_FILE = Path("server", "token-secret")
"""Where in the run folder the secret is kept. Without this file every token is worthless: delete it to end them all."""
OF_THE_RUN = "flead-run"
"""Who the run itself is, for `flead up` watches the server; he is no user, and only a viewer."""

_CLAIMS = ["iss", "aud", "sub", "iat", "exp", "jti", "role", "gen"]


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says: whose it is, and which generation of him."""

    name: str
    role: Role
    generation: int
    expires: datetime


class Tokens:
    """Makes and reads tokens.

    Parameters
    ----------
    clock:
        gives the present, aware, to what is made; what is read is held against the machine's clock
    """

    def __init__(self, secret: SecretStr, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._secret = secret
        self._clock = clock

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
            where it is not ours, was changed, or is over

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
            return Claims(str(found["sub"]), Role(found["role"]), int(found["gen"]), expires)
        except jwt.ExpiredSignatureError:
            raise BadCredentials("the token is over: log in again") from None
        except (jwt.InvalidTokenError, ValueError, TypeError):
            raise BadCredentials("the token is none of ours: log in again") from None


def of_the_run(secret: SecretStr, lasts: timedelta = timedelta(days=1)) -> str:
    """Make a viewer's token for the process that keeps a run: it reads the same run folder."""
    return Tokens(secret).make(OF_THE_RUN, Role.VIEWER, 0, lasts)[0]
