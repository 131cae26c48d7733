"""What to label next: labels of training images that are probably wrong, and answers that a challenger would have given otherwise."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "suspected_labels",
        sa.Column("digest", sa.String(32), primary_key=True),
        sa.Column("image", sa.LargeBinary(784), nullable=False),
        sa.Column("label", sa.SmallInteger(), nullable=False),
        sa.Column("predicted", sa.SmallInteger(), nullable=False),
        sa.Column("probability", sa.Float(), nullable=False),
        sa.Column("dataset", sa.String(16), nullable=False),
        sa.Column("found_at", sa.DateTime(), nullable=False),
        sa.Column("decision", sa.SmallInteger()),
        sa.Column("source", sa.String(64)),
        sa.Column("decided_at", sa.DateTime()),
    )
    op.create_table(
        "disagreements",
        sa.Column("prediction_id", sa.String(32), primary_key=True),
        sa.Column("challenger", sa.String(32), nullable=False),
    )
    op.create_index("ingested_labels_sequence", "ingested_labels", ["prediction_id", "sequence"])
    drawn = sa.text("audit IS NOT NULL")
    op.create_index(
        "prediction_batches_drawn", "prediction_batches", ["at"], sqlite_where=drawn, postgresql_where=drawn
    )
