"""Lines of runs, forks, messages between runs, limits on what comes of one, how far it may go; workflows."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("run", sa.Column("root_id", sa.String(length=64), server_default="", nullable=False))
    op.add_column("run", sa.Column("line", sa.JSON(), server_default="[]", nullable=False))
    op.add_column("run", sa.Column("forked_from", sa.String(length=64), nullable=True))
    op.create_index(op.f("ix_run_root_id"), "run", ["root_id"], unique=False)
    op.create_index(op.f("ix_run_step_snapshot_id"), "run_step", ["snapshot_id"], unique=False)
    op.add_column("agent_version", sa.Column("keep", sa.Integer(), server_default="1", nullable=False))
    op.add_column("agent_version", sa.Column("at_once", sa.Integer(), server_default="20", nullable=False))
    op.add_column("agent_version", sa.Column("tree", sa.Integer(), server_default="200", nullable=False))
    op.add_column("agent_version", sa.Column("budget", sa.JSON(), server_default="{}", nullable=False))
    for table in ("agent_version", "agent_trigger", "run"):
        op.add_column(table, sa.Column("confines", sa.JSON(), server_default="{}", nullable=False))
    op.add_column(
        "agent_version", sa.Column("outside", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    op.add_column("run", sa.Column("worker", sa.String(length=128), nullable=True))
    op.add_column("run", sa.Column("leased_until", sa.BigInteger(), nullable=True))
    op.create_table(
        "run_box",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("template", sa.String(length=128), nullable=False),
        sa.Column("sandbox_id", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("snapshot_id", sa.String(length=64), nullable=True),
        sa.Column("resting", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["run.id"], name=op.f("fk_run_box_run_id_run"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "key", name=op.f("pk_run_box")),
    )
    op.create_index(op.f("ix_run_box_snapshot_id"), "run_box", ["snapshot_id"], unique=False)
    op.create_table(
        "run_message",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=400), nullable=False),
        sa.Column("topic", sa.String(length=128), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("sent_at", sa.BigInteger(), nullable=False),
        sa.Column("sender", sa.String(length=64), nullable=True),
        sa.Column("taken_by", sa.String(length=255), nullable=True),
        sa.ForeignKeyConstraint(
            ["run_id"], ["run.id"], name=op.f("fk_run_message_run_id_run"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "number", name=op.f("pk_run_message")),
    )
    op.create_index("ix_run_message_key", "run_message", ["run_id", "key"], unique=True)
    _draw_lines()


def _draw_lines() -> None:
    """Of the runs that there are. Whoever began one is older."""
    conn = op.get_bind()
    run = sa.table(
        "run",
        sa.column("id", sa.String),
        sa.column("parent_id", sa.String),
        sa.column("root_id", sa.String),
        sa.column("line", sa.JSON),
        sa.column("created_at", sa.BigInteger),
    )
    lines: dict[str, list[str]] = {}
    for row in conn.execute(sa.select(run.c.id, run.c.parent_id).order_by(run.c.created_at)).all():
        line = lines[row.id] = [] if row.parent_id is None else [*lines.get(row.parent_id, []), row.parent_id]
        values = {"line": line, "root_id": line[0] if line else row.id}
        conn.execute(sa.update(run).where(run.c.id == row.id), values)
