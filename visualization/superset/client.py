"""What FLEAD asks a running Superset, over its REST interface."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import SecretStr

from flead.errors import FleadError, Unavailable

_PAGE = 100


class Superset:
    """A running Superset, asked as one of its users.

    Parameters
    ----------
    limit_s:
        longest wait for an answer, s

    Raises
    ------
    Unavailable
        where it does not answer
    FleadError
        where it refuses the password, or what is asked
    """

    def __init__(self, url: str, user: str, password: SecretStr, limit_s: float = 90.0) -> None:
        self.url = url
        self._user = user
        self._password = password
        self._http = httpx.Client(base_url=f"{url}/api/v1", timeout=limit_s)

    def __enter__(self) -> Self:
        login = {"username": self._user, "password": self._password.get_secret_value(), "provider": "db"}
        try:
            token = self._ask("POST", "security/login", json=login).json()["access_token"]
        except FleadError:
            self._http.close()
            raise
        self._http.headers["Authorization"] = f"Bearer {token}"
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._http.close()

    def dashboards(self) -> list[dict[str, Any]]:
        """Every dashboard, by its title."""
        query: dict[str, str | int] = {"page_size": _PAGE, "order_column": "dashboard_title", "order_direction": "asc"}
        found: list[dict[str, Any]] = self._get("dashboard/", q=_rison(query))
        return [self._get(f"dashboard/{dashboard['id']}") for dashboard in found]

    def charts(self, dashboard: int) -> list[dict[str, Any]]:
        """The charts of a dashboard, with their `form_data`."""
        found: list[dict[str, Any]] = self._get(f"dashboard/{dashboard}/charts")
        return found

    def ask(self, context: dict[str, Any]) -> list[dict[str, Any]]:
        """The answers to a chart's queries; raises `FleadError` where one fails, with what the database said."""
        answers: list[dict[str, Any]] = self._ask("POST", "chart/data", json=context).json()["result"]
        for answer in answers:
            if answer.get("error"):
                raise FleadError(" ".join(str(answer["error"]).split()))
        return answers

    def export(self) -> bytes:
        """Everything that Superset holds, as a bundle of YAML."""
        return self._ask("GET", "assets/export/").content

    def _get(self, path: str, **query: str) -> Any:
        return self._ask("GET", path, params=query).json()["result"]

    def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **more)
        except httpx.HTTPError as error:
            raise Unavailable(
                f"Superset does not answer at {self.url} ({type(error).__name__}): start a run, or look at its log "
                "(`flead logs superset`)"
            ) from None
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise FleadError(f"Superset does not know {self._user} by this password: it was changed in the browser")
        if response.is_error:
            raise FleadError(f"Superset refuses {path} ({response.status_code}): {_why(response)}")
        return response


def _why(response: httpx.Response) -> str:
    """What an answer that is an error says, on one line."""
    try:
        said = response.json()
        said = said.get("message") or said["errors"][0]["message"]
    except (ValueError, LookupError, AttributeError):
        said = response.text
    return " ".join(str(said).split())[:400]


def _rison(query: dict[str, str | int]) -> str:
    """A flat query in the notation that Superset reads.

    >>> _rison({"page_size": 10, "order_column": "id"})
    '(page_size:10,order_column:id)'
    """
    return f"({','.join(f'{key}:{value}' for key, value in query.items())})"
