"""The registry: runs, checkpoints, exports, attempts, artifacts, metrics, failures, baselines."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _create_inputs()
    _create_exports()
    _create_outcomes()
    _create_baselines()


def _create_inputs() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("parent_id", sa.String(64)),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("manifest_path", sa.Text, nullable=False),
        sa.Column("manifest_text", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("process", sa.Text, nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("finished_at", sa.String(32)),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
        sa.ForeignKeyConstraint(["parent_id"], ["runs.id"], name="fk_runs_parent_id"),
    )
    op.create_index("ix_runs_status", "runs", ["status"])
    op.create_index("ix_runs_created_at", "runs", ["created_at"])
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("config", sa.Text, nullable=False),
        sa.Column("weights", sa.Text, nullable=False),
        sa.Column("overrides", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_checkpoints"),
        sa.UniqueConstraint("digest", name="uq_checkpoints_digest"),
    )


def _create_exports() -> None:
    op.create_table(
        "exports",
        sa.Column("pk", sa.Integer, nullable=False),
        sa.Column("id", sa.String(96), nullable=False),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("checkpoint_id", sa.Integer, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("format", sa.String(64), nullable=False),
        sa.Column("content_key", sa.String(64), nullable=False),
        sa.Column("target", sa.String(64), nullable=False),
        sa.Column("latest", sa.Boolean, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("source_pk", sa.Integer),
        sa.Column("job", sa.JSON, nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("pk", name="pk_exports"),
        sa.UniqueConstraint("id", name="uq_exports_id"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_exports_run_id"),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoints.id"], name="fk_exports_checkpoint_id"),
        sa.ForeignKeyConstraint(["source_pk"], ["exports.pk"], name="fk_exports_source_pk"),
    )
    op.create_index("ix_exports_run_status", "exports", ["run_id", "status", "pk", "source_pk"])
    op.create_index("ix_exports_latest_status", "exports", ["latest", "status", "pk"])
    op.create_index("ix_exports_latest_format", "exports", ["latest", "format", "pk"])
    op.create_index("ix_exports_latest_model", "exports", ["latest", "model", "pk"])
    op.create_index("ix_exports_content_key", "exports", ["content_key", "status", "pk"])
    op.create_index("ix_exports_target", "exports", ["target", "pk"])
    op.create_table(
        "attempts",
        sa.Column("export_pk", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("log", sa.Text, nullable=False),
        sa.Column("started_at", sa.String(32), nullable=False),
        sa.Column("finished_at", sa.String(32)),
        sa.Column("seconds", sa.Double),
        sa.Column("stages", sa.JSON, nullable=False),
        sa.Column("notes", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("export_pk", "number", name="pk_attempts"),
        sa.ForeignKeyConstraint(["export_pk"], ["exports.pk"], name="fk_attempts_export_pk"),
    )


def _create_outcomes() -> None:
    op.create_table(
        "artifacts",
        sa.Column("export_pk", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("main_file", sa.Text, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("files", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("export_pk", "number", name="pk_artifacts"),
        _of_attempt("artifacts"),
    )
    op.create_table(
        "metrics",
        sa.Column("export_pk", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("baseline", sa.Double),
        sa.Column("exported", sa.Double),
        sa.Column("delta", sa.Double),
        sa.PrimaryKeyConstraint("export_pk", "number", "name", name="pk_metrics"),
        _of_attempt("metrics"),
    )
    op.create_table(
        "failures",
        sa.Column("export_pk", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("code", sa.String(64), nullable=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("hint", sa.Text, nullable=False),
        sa.Column("retryable", sa.Boolean, nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
        sa.Column("recorded_at", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("export_pk", "number", name="pk_failures"),
        sa.ForeignKeyConstraint(["export_pk"], ["exports.pk"], name="fk_failures_export_pk"),
    )


def _of_attempt(table: str) -> sa.ForeignKeyConstraint:
    columns = ["export_pk", "number"]
    return sa.ForeignKeyConstraint(
        columns, [f"attempts.{column}" for column in columns], name=f"fk_{table}_export_pk_number"
    )


def _create_baselines() -> None:
    op.create_table(
        "baselines",
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("checkpoint_id", sa.Integer, nullable=False),
        sa.Column("dataset", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("seconds", sa.Double),
        sa.Column("failure", sa.JSON),
        sa.Column("finished_at", sa.String(32)),
        sa.PrimaryKeyConstraint("run_id", "key", name="pk_baselines"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_baselines_run_id"),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoints.id"], name="fk_baselines_checkpoint_id"),
    )
    op.create_index("ix_baselines_key", "baselines", ["key", "status", "finished_at"])
    op.create_table(
        "baseline_metrics",
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("value", sa.Double),
        sa.PrimaryKeyConstraint("run_id", "key", "name", name="pk_baseline_metrics"),
        sa.ForeignKeyConstraint(
            ["run_id", "key"], ["baselines.run_id", "baselines.key"], name="fk_baseline_metrics_run_id_key"
        ),
    )
