"""How far out the sandboxes of a key may reach."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("api_key", sa.Column("egress", sa.JSON(), nullable=True))
