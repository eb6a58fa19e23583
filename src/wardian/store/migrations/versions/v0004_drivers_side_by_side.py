"""Sandboxes and snapshots say their driver, keys what isolation they demand, builds what they ask for.

Until now there was one driver.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

ONLY_DRIVER = "gvisor"
FILES_ID = "f"
"""What the id of a snapshot without memory begins with, which no driver made."""


def upgrade() -> None:
    for table, column in (("sandbox", "driver"), ("snapshot", "driver"), ("snapshot", "isolation")):
        op.add_column(
            table, sa.Column(column, sa.String(length=32), nullable=False, server_default=ONLY_DRIVER)
        )
    op.execute(
        sa.text("UPDATE snapshot SET driver = '' WHERE id LIKE :files").bindparams(files=f"{FILES_ID}%")
    )
    op.create_index(op.f("ix_snapshot_build_id"), "snapshot", ["build_id"], unique=False)
    op.add_column("api_key", sa.Column("minimum_isolation", sa.String(length=32), nullable=True))
    op.add_column("template_build", sa.Column("isolation", sa.String(length=32), nullable=True))
