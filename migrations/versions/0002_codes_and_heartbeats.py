"""The failure's code beside the export, for ``list --code``; a heartbeat, to know that a driver is gone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("runs", sa.Column("heartbeat_at", sa.String(32)))
    op.execute("UPDATE runs SET heartbeat_at = COALESCE(finished_at, created_at)")
    op.add_column("exports", sa.Column("code", sa.String(64)))
    op.execute(
        "UPDATE exports SET code = (SELECT failures.code FROM failures"
        " WHERE failures.export_pk = exports.pk AND failures.number = exports.attempt)"
    )
    op.create_index("ix_exports_latest_code", "exports", ["latest", "code", "pk"])
