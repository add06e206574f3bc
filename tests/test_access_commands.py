"""`flead users` and `flead keys`, and where `flead serve` refuses to listen."""

from __future__ import annotations

import io
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from config.child import ends_with_parent, free_port, stop
from config.settings import ServerSettings
from tests.fixtures_cli import Flead
from tests.fixtures_storage import wait_until

pytestmark = pytest.mark.servers


@contextmanager
def serving(run_dir: Path, **settings: str) -> Iterator[str]:
    """`flead serve` on a free port, as a process; its address."""
    port = str(free_port())
    environment = {name.upper(): value for name, value in settings.items()}
    command = [sys.executable, "-m", "orchestration", "serve", "--port", port, "--run-dir", str(run_dir)]
    with (run_dir.parent / "serve.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603
            ends_with_parent(command), stderr=log, env={**__import__("os").environ, **environment}
        )
        scheme = "https" if "FLEAD_SERVER__TLS_KEY" in environment else "http"
        try:
            wait_until(lambda: _answers(f"{scheme}://127.0.0.1:{port}"), 60)
            yield f"{scheme}://127.0.0.1:{port}"
        finally:
            stop(process)
