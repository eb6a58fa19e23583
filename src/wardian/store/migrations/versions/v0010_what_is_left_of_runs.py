"""What is left of runs that were removed, and what finds those that may go."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_table(
        "run_removed",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("agent_id", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=True),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=False),
        sa.Column("cleared", sa.Boolean(), nullable=False),
        sa.Column("logged", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run_removed")),
    )
    op.create_index("ix_run_removed_key", "run_removed", ["tenant_id", "agent_id", "key"], unique=True)
    op.create_index(op.f("ix_run_ended_at"), "run", ["ended_at"], unique=False)
    op.create_index(op.f("ix_run_forked_from"), "run", ["forked_from"], unique=False)
