"""What each metric was judged by, the confidence interval of its difference, and where a drift begins."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    collation = "C" if op.get_bind().dialect.name == "postgresql" else None
    for name in ("low", "high", "tolerance"):
        op.add_column("metrics", sa.Column(name, sa.Double))
    op.add_column("metrics", sa.Column("origin", sa.Text(collation=collation)))
    op.create_table(
        "drifts",
        sa.Column("export_pk", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("report", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("export_pk", "number", name="pk_drifts"),
        sa.ForeignKeyConstraint(
            ["export_pk", "number"],
            ["attempts.export_pk", "attempts.number"],
            name="fk_drifts_export_pk_number",
        ),
    )
