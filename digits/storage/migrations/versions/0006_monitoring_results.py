"""The last monitoring result of each version, for the service's metrics."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "monitoring_results",
        sa.Column("version", sa.String(64), primary_key=True),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("drift", sa.String(32), nullable=False),
        sa.Column("severity", sa.String(16), nullable=False),
        sa.Column("drifted_share", sa.Float(), nullable=False),
        sa.Column("accuracy", sa.String(32), nullable=False),
        sa.Column("labels", sa.Integer(), nullable=False),
        sa.Column("measured", sa.Float()),
        sa.Column("low", sa.Float()),
        sa.Column("high", sa.Float()),
        sa.Column("least", sa.Float(), nullable=False),
    )
