"""Superset as a service of a run: what it is started with, its secrets, and whether it answers.

It runs in an environment of its own (`.venv-superset`), for its requirements and the pipeline's exclude each other;
what runs there is in `inside/`. What it keeps for itself is in the database `superset` of the mart's PostgreSQL.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
from pydantic import SecretStr

from config.settings import PROJECT, Settings
from flead.errors import FleadError, Unavailable
from storage.reader import keep_secret, kept_secret
from visualization.mart.server import Role, address
from visualization.superset import assets

ENVIRONMENT = PROJECT / ".venv-superset"
INSIDE = Path(__file__).parent / "inside"
ADMIN = "admin"

_PYTHON = str(ENVIRONMENT / "bin" / "python")
_GIVEN = Path("secrets", "superset.json")
_KEY = Path("secrets", "superset.key")


def command(settings: Settings) -> list[str]:
    """Build the command line that serves Superset; it sets up first where that is needed. No secret is in it."""
    dashboards = settings.dashboards
    host = f"[{dashboards.host}]" if ":" in dashboards.host else dashboards.host
    return [
        _PYTHON, "-m", "gunicorn", "--config", str(INSIDE / "gunicorn_config.py"), "--pythonpath", str(INSIDE),
        "--bind", f"{host}:{dashboards.port}", "--workers", str(dashboards.workers),
        "--threads", str(dashboards.threads), "application:create()",
    ]  # fmt: skip


def environment(settings: Settings) -> dict[str, str]:
    """Where Superset finds its settings and its secrets."""
    return {
        "FLEAD_SUPERSET": str(settings.run_dir / _GIVEN),
        "SUPERSET_CONFIG_PATH": str(INSIDE / "superset_config.py"),
        "SUPERSET_HOME": str(settings.run_dir / "superset"),
        "PYTHONPATH": "",
        "PYTHONSAFEPATH": "1",  # FLEAD's own packages are not for it
        "PYTHONUNBUFFERED": "1",
    }


def prepare(settings: Settings, show: Callable[[str], object] = lambda _: None) -> None:
    """Lay out what the service needs; made once are the key that signs its cookies and the administrator's password.

    Parameters
    ----------
    show:
        called with one line that holds the password when it is first made; must not be a log

    Raises
    ------
    Unavailable
        where Superset is not installed
    CorruptRunFolder
        where the run folder cannot be read
    """
    if not (ENVIRONMENT / "bin" / "gunicorn").exists():
        raise Unavailable(f"there is no Superset in {ENVIRONMENT}: run orchestration/run_all.sh, which installs it")
    home, run_dir = settings.run_dir / "superset", settings.run_dir
    home.mkdir(parents=True, exist_ok=True)
    is_new = not password_file(settings).exists()
    admin_password = kept_secret(password_file(settings)).get_secret_value()
    given = {
        "secret_key": kept_secret(run_dir / _KEY).get_secret_value(),
        "metadata_uri": address(settings.mart, run_dir, Role.SUPERSET).get_secret_value(),
        "mart_uri": address(settings.mart, run_dir, Role.READER).get_secret_value(),
        "admin": ADMIN,
        "admin_password": admin_password,
        "assets": str(assets.FOLDER),
        "cache": str(home / "cache"),
        "fingerprint": _fingerprint(),
    }
    keep_secret(run_dir / _GIVEN, SecretStr(json.dumps(given)))
    if is_new:
        show(
            f"dashboards: {settings.dashboards.url}, user {ADMIN}, password {admin_password} "
            f"(shown this once; kept in {password_file(settings)})"
        )


def set_up(settings: Settings, show: Callable[[str], object] = lambda _: None) -> None:
    """Set Superset up now, whether that is needed or not; its dashboards become those of the files.

    Raises
    ------
    Unavailable
        see `prepare`
    FleadError
        where it fails, with the end of what Superset said
    """
    prepare(settings, show)
    done = subprocess.run(  # noqa: S603  # the command line is ours
        [_PYTHON, str(INSIDE / "application.py")],
        env={**os.environ, **environment(settings)}, cwd=settings.run_dir / "superset",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise FleadError(f"Superset could not be set up: {' | '.join(done.stdout.strip().splitlines()[-3:])[-600:]}")


def ready(settings: Settings) -> None:
    """Return if Superset answers; raises `Unavailable` where it does not (yet)."""
    url = settings.dashboards.url
    try:
        healthy = httpx.get(f"{url}/health", timeout=2.0).text == "OK"
    except httpx.HTTPError as error:
        raise Unavailable(f"Superset does not answer at {url} ({type(error).__name__}): start it with a run") from None
    if not healthy:
        raise Unavailable(f"what answers at {url} is not Superset: stop it, or set dashboards.port")


def admin_password(settings: Settings) -> SecretStr:
    """The administrator's password as it was made; raises `Unavailable` where there has been no set-up."""
    path = password_file(settings)
    if not path.exists():
        raise Unavailable(f"no dashboards have been set up in {settings.run_dir}: start a run, or name its --run-dir")
    return kept_secret(path)


def password_file(settings: Settings) -> Path:
    """Where the administrator's password lies, for its owner only."""
    return settings.run_dir / "secrets" / "superset-admin.password"


def _fingerprint() -> str:
    """What Superset's database is made of: its version, the way it is set up, and the dashboards."""
    digest = hashlib.sha256(assets.fingerprint().encode())
    for path in (PROJECT / "requirements" / "superset.txt", INSIDE / "application.py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()
