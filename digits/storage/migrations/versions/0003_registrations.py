"""The digests of the versions that this platform trained, and of those that it judged; judgements from before have none."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "registrations",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("at", sa.DateTime(), nullable=False),
    )
    op.add_column("judgements", sa.Column("digest", sa.String(64)))
