"""A real HTTP server for the tests, in a thread of its own, on a free port of this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from config.child import free_port
from tests.fixtures_storage import wait_until


@contextmanager
def live(app: FastAPI) -> Iterator[str]:
    """Serve an application; its address."""
    with listening(uvicorn.Config(app, log_level="warning")) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def listening(config: uvicorn.Config) -> Iterator[int]:
    """Serve as configured, on a free port, which is returned."""
    config.port = free_port()
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield config.port
    finally:
        server.should_exit = True
        thread.join()
