"""Asking the global server over REST, for the commands that operate it."""

from __future__ import annotations

import ssl
from typing import Any

import httpx

from config.settings import ServerSettings
from flead.errors import Conflict, FleadError, Forbidden, NotThere, Unavailable

_KINDS: dict[int, type[FleadError]] = {401: Forbidden, 403: Forbidden, 404: NotThere, 409: Conflict, 503: Unavailable}


class Server:
    """The global server of the settings.

    Parameters
    ----------
    token:
        of `POST /api/token`, where access is required
    """

    def __init__(self, settings: ServerSettings, token: str | None = None) -> None:
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        certificate = settings.tls_certificate
        self._verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=certificate) if certificate else True
        self._url = settings.url

    def ask(self, method: str, path: str, body: Any = None, **query: Any) -> dict[str, Any]:
        """Ask, and give the answer.

        Raises
        ------
        FleadError
            where the server refuses, with what it says; `Unavailable` where it does not answer
        """
        known = {name: value for name, value in query.items() if value is not None}
        try:
            response = httpx.request(
                method, self._url + path, json=body, params=known, headers=self._headers, timeout=60.0,
                verify=self._verify,
            )  # fmt: skip
            said: dict[str, Any] = response.json()
        except httpx.TransportError as error:
            raise Unavailable(f"no global server answers at {self._url} ({error}): start one with `flead up`") from None
        except ValueError:
            raise Unavailable(f"what answers at {self._url} is no global server of FLEAD") from None
        if response.is_error:
            detail = said.get("detail", f"status {response.status_code}")
            if response.status_code == 401:
                detail = f"{detail} (give a token with --token or FLEAD_TOKEN: docs/security.md)"
            wrong = [f"{one['where']}: {one['message']}" for one in said.get("errors", ()) if one["where"]]
            detail = f"{detail} ({'; '.join(wrong)})" if wrong else detail
            raise _KINDS.get(response.status_code, FleadError)(detail)
        return said
