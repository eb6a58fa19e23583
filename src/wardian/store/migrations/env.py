"""Alembic's entry: run the migrations on the connection that ``migrate`` hands over, in its transaction."""

from alembic import context

from wardian.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters tables by copying them
)
with context.begin_transaction():
    context.run_migrations()
