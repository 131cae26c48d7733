"""Alembic's entry point: on the connection of `digits.storage.database`, or by hand on the database from the settings.

To change the schema, change the tables in the code; `uv run alembic revision --autogenerate --rev-id NUMBER -m "what changed"` then
writes the migration, to be reviewed before it is committed. `uv run alembic check` reports a missing one. There are no downgrades:
restore the backup from before the upgrade instead.
"""

from alembic import context

from digits.settings import load_settings
from digits.storage import (
    api_keys,
    cooldowns,
    database,
    feedback,
    judgements,
    label_queue,
    ledger,
    monitoring_results,
    predictions,
    registrations,
    request_counts,
    suspected_labels,
)

# A table is part of the metadata once its module is imported.
assert {api_keys, cooldowns, feedback, judgements, label_queue, ledger, monitoring_results, predictions, registrations}
assert {request_counts, suspected_labels}


def run() -> None:
    connection = context.config.attributes.get("connection")
    if connection is None:
        connection = database.make_engine(load_settings().database_url).connect()
    # SQLite cannot change a column: a batch recreates the table (https://alembic.sqlalchemy.org/en/latest/batch.html).
    context.configure(connection=connection, target_metadata=database.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


run()
