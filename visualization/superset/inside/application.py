"""Superset as gunicorn serves it, set up first where that is needed; run as a script, it is set up and no more.

Set-up is Superset's own `db upgrade`, `create-admin`, `init` and `import`, in the one process that then serves: each
of these commands would take longer to start than to do what it does.
"""

# mypy: disable-error-code="import-not-found, import-untyped"

import json
import os
from pathlib import Path
from typing import Any

from superset.app import create_app

GIVEN = json.loads(Path(os.environ["FLEAD_SUPERSET"]).read_text())


def create() -> Any:
    """The application, of a database that is set up."""
    app = create_app()
    with app.app_context():
        if not is_set_up():
            set_up(app)
    return app


def is_set_up() -> bool:
    """Whether Superset's database was last set up from what is here now."""
    from superset import db

    if db.session.execute("SELECT to_regclass('flead_setup')").scalar() is None:
        return False
    return bool(db.session.execute("SELECT fingerprint FROM flead_setup").scalar() == GIVEN["fingerprint"])


def set_up(app: Any) -> None:
    """Bring the database up to date, make the administrator, and let the dashboards be those of the files."""
    from flask_migrate import upgrade
    from superset import appbuilder, db, security_manager

    db.session.rollback()  # no lock of ours may stand in the way
    upgrade()
    app.sync_config_to_db()
    appbuilder.add_permissions(update_perms=True)
    security_manager.sync_role_definitions()
    if not security_manager.find_user(GIVEN["admin"]):
        role = security_manager.find_role("Admin")
        security_manager.add_user(
            GIVEN["admin"], "FLEAD", "Administrator", "admin@localhost", role, GIVEN["admin_password"]
        )
    db.session.commit()
    import_assets(Path(GIVEN["assets"]))
    remember(GIVEN["fingerprint"])


def import_assets(folder: Path) -> None:
    """Let the dashboards be those of the files; what people made beside them stays."""
    from superset import security_manager
    from superset.commands.importers.v1.assets import ImportAssetsCommand
    from superset.utils.core import override_user

    contents = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.yaml")}
    with override_user(security_manager.find_user(GIVEN["admin"])):
        ImportAssetsCommand(contents).run()


def remember(fingerprint: str) -> None:
    """Keep what the database was set up from within it: the next start compares it."""
    from superset import db

    db.session.execute("CREATE TABLE IF NOT EXISTS flead_setup (fingerprint text NOT NULL)")
    db.session.execute("DELETE FROM flead_setup")
    db.session.execute("INSERT INTO flead_setup VALUES (:fingerprint)", {"fingerprint": fingerprint})
    db.session.commit()


if __name__ == "__main__":
    application = create_app()
    with application.app_context():
        set_up(application)
