"""Alembic's entry: runs migrations on the connection that `migrating.migrate` hands over, inside its transaction."""

from alembic import context

from memfold.eventstore.schema import SCHEMA, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table_schema=SCHEMA,
    include_schemas=True,
)
with context.begin_transaction():
    context.run_migrations()
