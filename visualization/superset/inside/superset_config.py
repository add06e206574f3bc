"""Superset's settings; it reads this file itself (SUPERSET_CONFIG_PATH). What is secret comes from one file, 0600."""

# mypy: disable-error-code="import-not-found"

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

_given = json.loads(Path(os.environ["FLEAD_SUPERSET"]).read_text())


def _derived(purpose: str) -> str:
    return hashlib.sha256(f"{purpose} {SECRET_KEY}".encode()).hexdigest()


SECRET_KEY = _given["secret_key"]
GUEST_TOKEN_JWT_SECRET = _derived("guests")
GLOBAL_ASYNC_QUERIES_JWT_SECRET = _derived("queries")

SQLALCHEMY_DATABASE_URI = _given["metadata_uri"]
SQLALCHEMY_ENGINE_OPTIONS = {"pool_pre_ping": True, "pool_size": 4, "max_overflow": 4}


def DB_CONNECTION_MUTATOR(uri: Any, params: dict[str, Any], *_: Any) -> tuple[Any, dict[str, Any]]:  # noqa: N802
    """Lead `@mart` of the assets to where the mart is, as the user who may only read: no password is in Superset."""
    return (make_url(_given["mart_uri"]) if uri.host == "mart" else uri), params


# Data come all the time: what several people look at is asked for once, and nobody sees much older than this.
# Ten browsers that refresh themselves share these answers too ("fetch"), rather than force each its own.
_CACHE = {"CACHE_TYPE": "FileSystemCache", "CACHE_THRESHOLD": 2_000, "CACHE_DEFAULT_TIMEOUT": 15}
DATA_CACHE_CONFIG = {**_CACHE, "CACHE_DIR": f"{_given['cache']}/data"}
CACHE_CONFIG = {**_CACHE, "CACHE_DIR": f"{_given['cache']}/pages"}
DASHBOARD_AUTO_REFRESH_MODE = "fetch"

ROW_LIMIT = 10_000
SQL_MAX_ROW = 50_000
SQLLAB_TIMEOUT = 30  # s
SUPERSET_WEBSERVER_TIMEOUT = 60  # s

FEATURE_FLAGS = {"DASHBOARD_CROSS_FILTERS": True, "DRILL_TO_DETAIL": True, "DRILL_BY": True}

# Nothing is fetched from elsewhere, and the browser is told to refuse it.
TALISMAN_ENABLED = True
TALISMAN_CONFIG = {
    "content_security_policy": {
        "base-uri": ["'self'"],
        "default-src": ["'self'"],
        "connect-src": ["'self'"],
        "font-src": ["'self'", "data:"],
        "frame-ancestors": ["'self'"],
        "img-src": ["'self'", "blob:", "data:"],
        "object-src": "'none'",
        "script-src": ["'self'", "'strict-dynamic'"],
        "style-src": ["'self'", "'unsafe-inline'"],
        "worker-src": ["'self'", "blob:"],
    },
    "content_security_policy_nonce_in": ["script-src"],
    "force_https": False,
    "session_cookie_secure": False,
}
ENABLE_CORS = False
THEME_FONT_URL_ALLOWED_DOMAINS: list[str] = []
FAB_API_SWAGGER_UI = False  # its page comes from elsewhere
SESSION_COOKIE_SAMESITE = "Strict"
RATELIMIT_ENABLED = True
RATELIMIT_STORAGE_URI = "memory://"

ALEMBIC_SKIP_LOG_CONFIG = True  # set-up is followed by serving, in one process
APP_NAME = "FLEAD"
LOGO_TARGET_PATH = "/dashboard/list/"
