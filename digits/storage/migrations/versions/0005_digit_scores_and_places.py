"""How much each image looks like a digit, and where a digit was read in a picture."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("prediction_batches", sa.Column("digit_scores", sa.LargeBinary()))
    op.add_column("prediction_batches", sa.Column("places", sa.Text()))
