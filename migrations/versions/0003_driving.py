"""What drivers and people tell each other: cancel requests, what is running, how to reproduce a failure.

Runs get numbers, because a clock that was set back would put a new run before an old one. Extensions are
kept with the checkpoints that need them. On PostgreSQL text is compared by its bytes from here on, as SQLite
does and as the patterns of ``zooport list`` rely on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_NUMBERS = """
UPDATE runs SET number = (
    SELECT COUNT(*) FROM runs AS earlier
    WHERE earlier.created_at < runs.created_at
       OR (earlier.created_at = runs.created_at AND earlier.id <= runs.id)
)
"""


def upgrade() -> None:
    op.add_column("runs", sa.Column("number", sa.Integer, nullable=False, server_default="0"))
    op.execute(_NUMBERS)
    op.create_index("ix_runs_number", "runs", ["number"])
    op.add_column("runs", sa.Column("cancel_requested_at", sa.String(32)))
    op.add_column("runs", sa.Column("activity", sa.JSON))
    op.add_column("attempts", sa.Column("command", sa.Text))
    op.add_column("checkpoints", sa.Column("imports", sa.JSON, nullable=False, server_default="[]"))
    if op.get_bind().dialect.name == "postgresql":
        _compare_bytes()


def _compare_bytes() -> None:
    inspector = sa.inspect(op.get_bind())
    for table in inspector.get_table_names():
        if table == "alembic_version":
            continue
        for column in inspector.get_columns(table):
            kind = column["type"]
            if isinstance(kind, sa.String):  # Text is one, too
                name = "TEXT" if kind.length is None else f"VARCHAR({kind.length})"
                op.execute(f'ALTER TABLE "{table}" ALTER COLUMN "{column["name"]}" TYPE {name} COLLATE "C"')
