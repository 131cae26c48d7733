"""The predictions in batches: a row holds up to a thousand instead of one."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

READ_ROWS = 1000


def upgrade() -> None:
    batches = op.create_table(
        "prediction_batches",
        sa.Column("first_id", sa.String(32), primary_key=True),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("version", sa.String(32), nullable=False),
        sa.Column("route", sa.String(32), nullable=False),
        sa.Column("clients", sa.Text(), nullable=False),
        sa.Column("audit", sa.LargeBinary()),
        sa.Column("ids", sa.LargeBinary(), nullable=False),
        sa.Column("probabilities", sa.LargeBinary(), nullable=False),
        sa.Column("images", sa.LargeBinary(), nullable=False),
    )
    op.create_index("prediction_batches_at", "prediction_batches", ["at"])
    predictions = sa.table(
        "predictions",
        sa.column("at", sa.DateTime),
        *map(sa.column, ("id", "version", "route", "client", "audit", "probabilities", "image")),
    )
    connection, last = op.get_bind(), ""
    query = sa.select(predictions).order_by(predictions.c.id).limit(READ_ROWS)
    while rows := connection.execute(query.where(predictions.c.id > last)).all():
        # Each becomes a batch of its own.
        connection.execute(sa.insert(batches), [_batch(row) for row in rows])
        last = rows[-1].id
    op.drop_table("predictions")


def _batch(row: sa.Row[Any]) -> dict[str, object]:
    return {
        "first_id": row.id,
        "at": row.at,
        "version": row.version,
        "route": row.route,
        "clients": json.dumps([row.client]),
        "audit": b"\0\0" if row.audit else None,
        "ids": bytes.fromhex(row.id),
        "probabilities": row.probabilities,
        "images": row.image,
    }
