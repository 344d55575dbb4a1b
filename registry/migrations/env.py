"""Alembic's entry: runs on the connection that `registry.database.migrate` hands over."""

from alembic import context

from registry.models import Record

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Record.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
