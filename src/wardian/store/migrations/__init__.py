"""Schema migrations, applied when the database is opened.

Alembic is only loaded when there is something to do: opening a current database costs one query.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine, inspect, text

HEAD = "0010"
"""The newest revision in ``versions/`` (a test keeps it true)."""


def migrate(engine: Engine) -> None:
    """Bring the schema up to :data:`HEAD`. Raises if the database is newer than this program."""
    with engine.connect() as conn:
        if inspect(conn).has_table("alembic_version"):
            current = conn.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
            if current == HEAD:
                return
    _upgrade(engine)


def _upgrade(engine: Engine) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    with engine.begin() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, "head")
