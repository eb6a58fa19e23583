"""Runners, their releases, and where one stands beside an environment."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "runner",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("current", sa.Integer(), nullable=False),
        sa.Column("previous", sa.Integer(), nullable=True),
        sa.Column("canary", sa.Integer(), nullable=True),
        sa.Column("share", sa.Integer(), nullable=False),
        sa.Column("rolled_back", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runner")),
    )
    op.create_index("ix_runner_name", "runner", ["tenant_id", "name"], unique=True)
    op.create_table(
        "runner_place",
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("runner_id", sa.String(length=64), nullable=False),
        sa.Column("current", sa.Integer(), nullable=True),
        sa.Column("held", sa.JSON(), nullable=False),
        sa.Column("wanted", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_runner_place")),
    )
    op.create_table(
        "runner_release",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("runner_id", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("language", sa.String(length=16), nullable=False),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("good_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_runner_release")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_runner_release_digest", "runner_release", ["runner_id", "digest"], unique=True)
    op.add_column("agent_version", sa.Column("runner", sa.String(length=64), nullable=True))
    op.add_column("run", sa.Column("runner", sa.JSON(), nullable=True))
