"""The digest of the promoted version in the ledger; entries from before have none."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # Commits between the two had the column in 0001.
    if "digest" not in {column["name"] for column in sa.inspect(op.get_bind()).get_columns("ledger")}:
        op.add_column("ledger", sa.Column("digest", sa.String(64)))
