"""How gunicorn serves Superset: loaded once and shared by all workers, which halves memory and the start."""

# mypy: disable-error-code="import-not-found"

import os
from typing import Any

preload_app = True
worker_class = "gthread"
control_socket_disable = True
chdir = os.environ["SUPERSET_HOME"]  # it imports from where it runs, and FLEAD's packages are not for it
timeout = 90  # s; longer than Superset's own limits


def post_fork(_server: Any, worker: Any) -> None:
    """Connections to the database must not be shared: each worker opens its own."""
    from superset.extensions import db

    with worker.app.wsgi().app_context():
        db.engine.dispose(close=False)
