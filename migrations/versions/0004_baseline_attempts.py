"""Evaluations of eager models are tried again like exports, and each try is a row with its log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    collation = "C" if op.get_bind().dialect.name == "postgresql" else None

    def text(length: int | None = None) -> sa.types.TypeEngine[str]:
        return sa.Text(collation=collation) if length is None else sa.String(length, collation=collation)

    op.create_table(
        "baseline_attempts",
        sa.Column("run_id", text(64), nullable=False),
        sa.Column("key", text(64), nullable=False),
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("status", text(16), nullable=False),
        sa.Column("log", text(), nullable=False),
        sa.Column("seconds", sa.Double),
        sa.Column("failure", sa.JSON),
        sa.Column("finished_at", text(32), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "key", "number", name="pk_baseline_attempts"),
        sa.ForeignKeyConstraint(
            ["run_id", "key"], ["baselines.run_id", "baselines.key"], name="fk_baseline_attempts_run_id_key"
        ),
    )
    op.create_index("ix_baseline_attempts_key", "baseline_attempts", ["key"])
