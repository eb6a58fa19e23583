"""The tables. Portable SQL only; ``migrations/`` must arrive at exactly this (a test compares them).

Times are microseconds since the epoch, digests ``sha256:<hex>``. Nothing here is ever updated to forget what
a sandbox cost: ``usage_interval`` rows outlive their sandbox's snapshot, machine and secrets.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    false,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

FIRST_DRIVER = "gvisor"
"""What rows from before there were others were made by; the level is called the same."""

_ROW_ID = BigInteger().with_variant(Integer(), "sqlite")  # SQLite numbers rows only in an INTEGER column

tenant = Table(
    "tenant",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

api_key = Table(
    "api_key",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(64), ForeignKey("tenant.id"), nullable=False, index=True),
    Column("name", String(200), nullable=False),
    Column("prefix", String(16), nullable=False),  # the first characters, so that people can tell keys apart
    Column(
        "digest", String(80), nullable=False, unique=True
    ),  # of the whole key; the key itself is never kept
    Column("minimum_isolation", String(32)),  # null: it demands none
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    Column("egress", JSON),  # how far out its sandboxes may reach; NULL: as far as any
)

template = Table(
    "template",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("alias", String(128)),
    Column("tenant_id", String(64), ForeignKey("tenant.id")),  # null: the house's own
    Column("public", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("spawn_count", BigInteger, nullable=False),
    Column("last_spawned_at", BigInteger),
    Index("ix_template_alias", "tenant_id", "alias", unique=True),
)

template_build = Table(
    "template_build",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("template_id", String(64), ForeignKey("template.id", ondelete="CASCADE"), nullable=False),
    Column("status", String(16), nullable=False),
    Column("cpu_count", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("disk_mib", Integer, nullable=False),
    Column("processes_max", Integer, nullable=False),
    Column("tags", JSON, nullable=False),  # moved to it when it becomes ready
    Column("root_digest", String(80), nullable=False),
    Column("tree", String(80), nullable=False),
    Column("snapshot_id", String(64), index=True),
    Column("surroundings", JSON, nullable=False),
    Column("start", String, nullable=False),
    Column("ready", String, nullable=False),
    Column("isolation", String(32)),  # null: auto
    Column("plan", JSON),
    Column("lock", JSON),
    Column("failure", JSON),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
    Index("ix_template_build_listing", "template_id", "created_at", "id"),
)

template_tag = Table(
    # Who was given a tag when. The newest row of a tag is the one in force.
    "template_tag",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("template_id", String(64), ForeignKey("template.id", ondelete="CASCADE"), nullable=False),
    Column("tag", String(64), nullable=False),
    Column("build_id", String(36), ForeignKey("template_build.id", ondelete="CASCADE"), nullable=False),
    Column("assigned_at", BigInteger, nullable=False),
    Index("ix_template_tag_newest", "template_id", "tag", "assigned_at", "id"),
)

node = Table(
    "node",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("epoch", BigInteger, nullable=False),  # raised by every takeover; an older holder is refused
    Column("holder", String(200), nullable=False),  # pid and host name, for people
    Column("started_at", BigInteger, nullable=False),
    Column("heartbeat_at", BigInteger, nullable=False),
)

sandbox = Table(
    "sandbox",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("node_id", String(64), nullable=False),
    Column("template_id", String(64), nullable=False),
    Column("template_alias", String(128)),
    Column("template_digest", String(80), nullable=False),
    Column("build_id", String(36)),
    Column("tree", String(80)),
    Column("surroundings", JSON),
    Column("state", String(16), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("driver", String(32), nullable=False, server_default=FIRST_DRIVER),
    Column("isolation", String(32), nullable=False),
    Column("cpu_count", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("disk_mib", Integer, nullable=False),
    Column("processes_max", Integer, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("access_token", String(128)),
    Column("traffic_token", String(128)),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("end_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("end_reason", String(32)),
    Column("snapshot_id", String(64)),
    Column("parent_id", String(64)),
    Column("machine_id", String(128)),
    Column("machine", JSON),
    Column("idempotency_key", String(255)),
    Index("ix_sandbox_listing", "tenant_id", "started_at", "id"),
    Index("ix_sandbox_idempotency", "tenant_id", "idempotency_key", unique=True),
    Index("ix_sandbox_open", "node_id", "state"),
)

sandbox_metadata = Table(
    "sandbox_metadata",
    metadata,
    Column("sandbox_id", String(64), ForeignKey("sandbox.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String, primary_key=True),
    Column("value", String, nullable=False),
)

intent = Table(
    "intent",
    metadata,
    Column("id", _ROW_ID, primary_key=True, autoincrement=True),
    Column("sandbox_id", String(64), nullable=False),
    Column("verb", String(32), nullable=False),
    Column("data", JSON, nullable=False),
    Column("opened_at", BigInteger, nullable=False),
    Column("closed_at", BigInteger),
    Column("outcome", String(200)),
    # At most one thing is being done to a sandbox at any time.
    Index(
        "ix_intent_open",
        "sandbox_id",
        unique=True,
        sqlite_where=text("closed_at IS NULL"),
        postgresql_where=text("closed_at IS NULL"),
    ),
)

snapshot = Table(
    "snapshot",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("sandbox_id", String(64), nullable=False, index=True),
    Column("template_id", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("name", String(200)),
    Column("parent_id", String(64), index=True),
    Column("driver", String(32), nullable=False, server_default=FIRST_DRIVER),  # "" for files alone
    Column("isolation", String(32), nullable=False, server_default=FIRST_DRIVER),
    Column("digest", String(80), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("root_digest", String(80), nullable=False),
    Column("build_id", String(36), index=True),
    Column("tree", String(80)),
    Column("surroundings", JSON),
    Column("cpu_count", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("disk_mib", Integer, nullable=False),
    Column("processes_max", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index("ix_snapshot_listing", "tenant_id", "created_at", "id"),
)

usage_interval = Table(
    "usage_interval",
    metadata,
    Column("id", _ROW_ID, primary_key=True, autoincrement=True),
    Column("sandbox_id", String(64), nullable=False),
    Column("tenant_id", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("opened_at", BigInteger, nullable=False),
    Column("closed_at", BigInteger),
    Column("cpu_count", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("disk_mib", Integer, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
    Index("ix_usage_interval_tenant", "tenant_id", "opened_at"),
    Index("ix_usage_interval_sandbox", "sandbox_id"),
    # One meter runs at a time.
    Index(
        "ix_usage_interval_open",
        "sandbox_id",
        unique=True,
        sqlite_where=text("closed_at IS NULL"),
        postgresql_where=text("closed_at IS NULL"),
    ),
)

secret = Table(
    "secret",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("name", String(128), nullable=False),
    Column("current_version", Integer, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Index("ix_secret_name", "tenant_id", "name", unique=True),
)

secret_version = Table(
    "secret_version",
    metadata,
    Column("secret_id", String(64), ForeignKey("secret.id", ondelete="CASCADE"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("key_id", String(64), nullable=False, index=True),  # names the master key, says nothing about it
    Column("data_key", LargeBinary, nullable=False),  # sealed with the master key
    Column("value", LargeBinary, nullable=False),  # sealed with the data key
    Column("created_at", BigInteger, nullable=False),
)

volume = Table(
    "volume",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("name", String(128), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("deleted_at", BigInteger),  # set before its files go, so that a crash in between is made good
    Index(
        "ix_volume_name",
        "tenant_id",
        "name",
        unique=True,
        sqlite_where=text("deleted_at IS NULL"),
        postgresql_where=text("deleted_at IS NULL"),
    ),
)

secret_grant = Table(
    "secret_grant",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("secret_id", String(64), ForeignKey("secret.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("rule", JSON, nullable=False),  # what is asked of it is asked of all of a tenant's at once
    Index("ix_secret_grant_name", "tenant_id", "name", unique=True),
)

effect = Table(
    "effect",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("sandbox_id", String(64), nullable=False),
    Column("run", String(64), nullable=False),
    Column("step", String(128), nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("grant_name", String(64), nullable=False),
    Column("method", String(16), nullable=False),
    Column("url", String(2048), nullable=False),  # without its query
    Column("digest", String(80), nullable=False),  # of the query and the canonical body
    Column("state", String(16), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("status", Integer),
    Column("headers", JSON),
    Column("body", LargeBinary),
    Column("blob", String(64)),
    Column("whole", Boolean),
    Column("delivered", Boolean, nullable=False),  # the program had all of the answer
    Index("ix_effect_listing", "tenant_id", "created_at", "id"),
    Index("ix_effect_key", "run", "step", "digest"),
)

budget = Table(
    "budget",
    metadata,
    Column("tenant_id", String(64), primary_key=True),
    Column("scope", String(16), primary_key=True),
    Column("subject", String(64), primary_key=True),
    Column("unit", String(16), primary_key=True),
    Column("most", BigInteger, nullable=False),
    Column("used", BigInteger, nullable=False),
)

model_price = Table(
    "model_price",
    metadata,
    Column("tenant_id", String(64), primary_key=True),
    Column("model", String(128), primary_key=True),
    Column("tokens_in", BigInteger, nullable=False),
    Column("tokens_out", BigInteger, nullable=False),
)

agent = Table(
    "agent",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("version", Integer, nullable=False),  # that new runs get
    Column("created_at", BigInteger, nullable=False),
    Index("ix_agent_name", "tenant_id", "name", unique=True),
)

agent_version = Table(
    "agent_version",
    metadata,
    Column("agent_id", String(64), ForeignKey("agent.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("environment", String(64), nullable=False),
    Column("entry", String, nullable=False),
    Column("env", JSON, nullable=False),
    Column("checkpoint", String(16), nullable=False),
    Column("every_s", Integer, nullable=False),
    Column("keep", Integer, nullable=False, server_default="1"),
    Column("timeout_s", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("at_once", Integer, nullable=False, server_default="20"),
    Column("tree", Integer, nullable=False, server_default="200"),
    Column("budget", JSON, nullable=False, server_default="{}"),
    Column("confines", JSON, nullable=False, server_default="{}"),
    Column("outside", Boolean, nullable=False, server_default=false()),
    Column("created_at", BigInteger, nullable=False),
    Column("runner", String(64)),  # by name
)

agent_trigger = Table(
    "agent_trigger",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(64), nullable=False, index=True),
    Column("agent_id", String(64), ForeignKey("agent.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("input", JSON, nullable=False),
    Column("schedule", JSON),
    Column("secret", String),  # sealed
    Column("confines", JSON, nullable=False, server_default="{}"),
    Column("next_at", BigInteger, index=True),
    Column("last_run", String(64)),
)

run = Table(
    "run",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("agent_id", String(64), nullable=False),
    Column("agent", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("trigger_kind", String(16), nullable=False),
    Column("trigger_detail", JSON, nullable=False),
    Column("input", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("began", Integer, nullable=False),
    Column("sandbox_id", String(64), index=True),
    Column("snapshot_id", String(64), index=True),
    Column("committed", Integer, nullable=False),
    Column("key", String(255)),
    Column("parent_id", String(64), index=True),  # the last of its line
    Column("root_id", String(64), nullable=False, index=True, server_default=""),  # the first, or itself
    Column("line", JSON, nullable=False, server_default="[]"),
    Column("forked_from", String(64), index=True),
    Column("confines", JSON, nullable=False, server_default="{}"),
    Column("worker", String(128)),
    Column("leased_until", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("deadline_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("ended_at", BigInteger, index=True),
    Column("result", JSON),
    Column("failure", JSON),
    Column("runner", JSON),  # the release that it was given
    Index("ix_run_listing", "tenant_id", "created_at", "id"),
    Index("ix_run_key", "tenant_id", "agent_id", "key", unique=True),
)

run_removed = Table(
    "run_removed",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("agent_id", String(64), nullable=False),
    Column("key", String(255)),
    Column("generation", Integer, nullable=False),
    Column("removed_at", BigInteger, nullable=False),
    Column("cleared", Boolean, nullable=False),  # its files, and what its engine knew
    Column("logged", Boolean, nullable=False),  # its log is there
    Index("ix_run_removed_key", "tenant_id", "agent_id", "key", unique=True),
)

run_step = Table(
    "run_step",
    metadata,
    Column("run_id", String(64), ForeignKey("run.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("digest", String(80), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("begun_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("number", Integer),
    Column("result", JSON),
    Column("snapshot_id", String(64), index=True),
    Column("events", BigInteger, nullable=False),
    Column("effects", BigInteger, nullable=False),
)

run_wait = Table(
    "run_wait",
    metadata,
    Column("run_id", String(64), ForeignKey("run.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("asked", JSON, nullable=False),
    Column("begun_at", BigInteger, nullable=False),
    Column("until", BigInteger),
    Column("answered_at", BigInteger),
    Column("answer", JSON),
)

run_message = Table(
    "run_message",
    metadata,
    Column("run_id", String(64), ForeignKey("run.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("key", String(400), nullable=False),
    Column("topic", String(128), nullable=False),
    Column("body", JSON, nullable=False),
    Column("sent_at", BigInteger, nullable=False),
    Column("sender", String(64)),
    Column("taken_by", String(255)),
    Index("ix_run_message_key", "run_id", "key", unique=True),
)

run_box = Table(
    "run_box",
    metadata,
    Column("run_id", String(64), ForeignKey("run.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("template", String(128), nullable=False),
    Column("sandbox_id", String(64), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("snapshot_id", String(64), index=True),
    Column("resting", Boolean, nullable=False),
)

runner = Table(
    "runner",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("current", Integer, nullable=False),
    Column("previous", Integer),
    Column("canary", Integer),
    Column("share", Integer, nullable=False),
    Column("rolled_back", JSON),
    Column("created_at", BigInteger, nullable=False),
    Index("ix_runner_name", "tenant_id", "name", unique=True),
)

runner_release = Table(
    "runner_release",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("runner_id", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("language", String(16), nullable=False),
    Column("files", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("good_at", BigInteger),
    Index("ix_runner_release_digest", "runner_id", "digest", unique=True),
    sqlite_autoincrement=True,  # the kernels of machines remember numbers: none is used twice
)

runner_place = Table(
    "runner_place",
    metadata,
    Column("owner", String(64), primary_key=True),  # a run, or a sandbox that is no run's
    Column("runner_id", String(64), nullable=False),
    Column("current", Integer),
    Column("held", JSON, nullable=False),
    Column("wanted", Integer),
)
