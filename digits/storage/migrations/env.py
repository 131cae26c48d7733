"""Where Alembic starts: on the connection of `digits.storage.database`, or by hand on the database from the settings.

A change of the schema: change the tables in the code, then `uv run alembic revision --autogenerate --rev-id 0002 -m "what changed"`
writes the migration, to be read before it is committed. `uv run alembic check` says whether one is missing. There is no way down:
the way back is the backup from before.
"""

from alembic import context

from digits.settings import load_settings
from digits.storage import api_keys, cooldowns, database, feedback, ledger, predictions

# A table is part of the metadata once its module is imported.
assert {feedback, api_keys, ledger, cooldowns, predictions}


def run() -> None:
    connection = context.config.attributes.get("connection")
    if connection is None:
        connection = database.make_engine(load_settings().database_url).connect()
    # SQLite cannot change a column: a batch makes the table anew (https://alembic.sqlalchemy.org/en/latest/batch.html).
    context.configure(connection=connection, target_metadata=database.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


run()
