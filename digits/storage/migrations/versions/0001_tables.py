"""The tables as they were made before there were migrations; what a database has already is left as it is."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "predictions",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("version", sa.String(32), nullable=False),
        sa.Column("digit", sa.SmallInteger(), nullable=False),
        sa.Column("probability", sa.Float(), nullable=False),
        sa.Column("probabilities", sa.LargeBinary(40), nullable=False),
        sa.Column("image", sa.LargeBinary(784), nullable=False),
        sa.Column("route", sa.String(32), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("audit", sa.Boolean(), nullable=False),
        if_not_exists=True,
    )
    op.create_index("predictions_at", "predictions", ["at"], if_not_exists=True)
    op.create_table(
        "feedback",
        sa.Column("sequence", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("prediction_id", sa.String(32), nullable=False),
        sa.Column("digit", sa.SmallInteger(), nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        if_not_exists=True,
    )
    op.create_index("ix_feedback_prediction_id", "feedback", ["prediction_id"], if_not_exists=True)
    op.create_table(
        "taken_labels",
        sa.Column("prediction_id", sa.String(32), primary_key=True),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(32), nullable=False),
        sa.Column("image", sa.LargeBinary(784), nullable=False),
        sa.Column("digit", sa.SmallInteger(), nullable=False),
        sa.Column("answered", sa.SmallInteger(), nullable=False),
        sa.Column("probability", sa.Float(), nullable=False),
        sa.Column("version", sa.String(32), nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("audited", sa.Boolean(), nullable=False),
        sa.Column("answered_at", sa.DateTime(), nullable=False),
        sa.Column("part", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("taken_at", sa.DateTime(), nullable=False),
        if_not_exists=True,
    )
    op.create_index("ix_taken_labels_digest", "taken_labels", ["digest"], if_not_exists=True)
    op.create_index("ix_taken_labels_part", "taken_labels", ["part"], if_not_exists=True)
    op.create_table(
        "ledger",
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("from_version", sa.String(32)),
        sa.Column("to_version", sa.String(32), nullable=False),
        sa.Column("by", sa.String(128), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "marks",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("at", sa.DateTime(), nullable=False),
        if_not_exists=True,
    )
