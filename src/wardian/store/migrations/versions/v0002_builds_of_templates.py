"""Templates have builds and tags; sandboxes and snapshots say which build they come from.

The table of templates is made anew: it only ever held the house's own, which a server writes at every start.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.drop_table("template")
    op.create_table(
        "template",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("alias", sa.String(length=128), nullable=True),
        sa.Column("tenant_id", sa.String(length=64), nullable=True),
        sa.Column("public", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("spawn_count", sa.BigInteger(), nullable=False),
        sa.Column("last_spawned_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_template_tenant_id_tenant")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_template")),
    )
    op.create_index("ix_template_alias", "template", ["tenant_id", "alias"], unique=True)
    op.create_table(
        "template_build",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("template_id", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("cpu_count", sa.Integer(), nullable=False),
        sa.Column("memory_mib", sa.Integer(), nullable=False),
        sa.Column("disk_mib", sa.Integer(), nullable=False),
        sa.Column("processes_max", sa.Integer(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("root_digest", sa.String(length=80), nullable=False),
        sa.Column("tree", sa.String(length=80), nullable=False),
        sa.Column("snapshot_id", sa.String(length=64), nullable=True),
        sa.Column("surroundings", sa.JSON(), nullable=False),
        sa.Column("start", sa.String(), nullable=False),
        sa.Column("ready", sa.String(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=True),
        sa.Column("lock", sa.JSON(), nullable=True),
        sa.Column("failure", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["template_id"],
            ["template.id"],
            name=op.f("fk_template_build_template_id_template"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_template_build")),
    )
    op.create_index(op.f("ix_template_build_snapshot_id"), "template_build", ["snapshot_id"], unique=False)
    op.create_index(
        "ix_template_build_listing", "template_build", ["template_id", "created_at", "id"], unique=False
    )
    op.create_table(
        "template_tag",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("template_id", sa.String(length=64), nullable=False),
        sa.Column("tag", sa.String(length=64), nullable=False),
        sa.Column("build_id", sa.String(length=36), nullable=False),
        sa.Column("assigned_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["template_id"],
            ["template.id"],
            name=op.f("fk_template_tag_template_id_template"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["build_id"],
            ["template_build.id"],
            name=op.f("fk_template_tag_build_id_template_build"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_template_tag")),
    )
    op.create_index(
        "ix_template_tag_newest", "template_tag", ["template_id", "tag", "assigned_at", "id"], unique=False
    )
    for name in ("sandbox", "snapshot"):
        op.add_column(name, sa.Column("build_id", sa.String(length=36), nullable=True))
        op.add_column(name, sa.Column("tree", sa.String(length=80), nullable=True))
        op.add_column(name, sa.Column("surroundings", sa.JSON(), nullable=True))
