"""The tables, as SQLAlchemy Core sees them. ``migrations/`` makes them; a test compares the two.

Core rather than mapped classes: rows leave this package as plain values and are written by statement, so an
identity map would only cost time. Types are the portable ones; times are ISO 8601 text in UTC, which sorts
as it reads on every database. NaN is stored as NULL, because SQLite cannot do otherwise. On PostgreSQL all
text has the collation "C", so that it sorts by its code points there, too.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

#: The revision that this code reads and writes: the newest in ``migrations/versions`` (a test compares).
HEAD = "0005"

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = MetaData(naming_convention=NAMES)

#: Alembic's own table: one row, the revision.
version = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))

runs = Table(
    "runs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("parent_id", String(64), ForeignKey("runs.id")),
    Column("kind", String(16), nullable=False),
    Column("status", String(16), nullable=False, index=True),
    Column("manifest_path", Text, nullable=False),
    Column("manifest_text", Text, nullable=False),
    # The driver that owns the run: a run is alive as long as this process is.
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("process", Text, nullable=False),
    Column("created_at", String(32), nullable=False, index=True),
    Column("finished_at", String(32)),
    # When the driver last wrote: how another machine tells that it is gone.
    Column("heartbeat_at", String(32)),
    # Runs in the order in which they began; clocks are set back, this is not.
    Column("number", Integer, nullable=False, server_default="0", index=True),
    # When somebody asked for the run to be cancelled; its driver looks at this.
    Column("cancel_requested_at", String(32)),
    # What the driver last said is running: a list of LiveJob as JSON.
    Column("activity", JSON),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("config", Text, nullable=False),
    Column("weights", Text, nullable=False),
    Column("overrides", JSON, nullable=False),
    Column("imports", JSON, nullable=False, server_default="[]"),
)

#: A key in the column ``job`` that is no part of the job: what verified the artifact, if there was a choice.
VERIFIED_BY = "verified_by"

exports = Table(
    "exports",
    metadata,
    Column("pk", Integer, primary_key=True),
    Column("id", String(96), nullable=False, unique=True),
    Column("run_id", String(64), ForeignKey("runs.id"), nullable=False),
    Column("checkpoint_id", Integer, ForeignKey("checkpoints.id"), nullable=False),
    Column("model", Text, nullable=False),
    Column("format", String(64), nullable=False),
    Column("content_key", String(64), nullable=False),
    # What stays the same from run to run: the manifest, the model's name and the format. The newest export
    # of a target is its latest state.
    Column("target", String(64), nullable=False),
    Column("latest", Boolean, nullable=False),
    Column("status", String(16), nullable=False),
    # The newest attempt's number. Numbers go on from one export of a target to the next.
    Column("attempt", Integer, nullable=False),
    # For an export served from an earlier success: that export; attempt, artifact and metrics are its own.
    Column("source_pk", Integer, ForeignKey("exports.pk")),
    Column("job", JSON, nullable=False),
    Column("created_at", String(32), nullable=False),
    # The failure's code once more, so that `list --code` finds it through an index.
    Column("code", String(64)),
    # With source_pk, so that a run's exports are counted from the index alone.
    Index("ix_exports_run_status", "run_id", "status", "pk", "source_pk"),
    Index("ix_exports_latest_status", "latest", "status", "pk"),
    Index("ix_exports_latest_format", "latest", "format", "pk"),
    Index("ix_exports_latest_model", "latest", "model", "pk"),
    Index("ix_exports_latest_code", "latest", "code", "pk"),
    Index("ix_exports_content_key", "content_key", "status", "pk"),
    Index("ix_exports_target", "target", "pk"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("export_pk", Integer, ForeignKey("exports.pk"), primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("status", String(16), nullable=False),
    Column("worker", Text, nullable=False),
    Column("log", Text, nullable=False),
    Column("started_at", String(32), nullable=False),
    Column("finished_at", String(32)),
    Column("seconds", Double),
    Column("stages", JSON, nullable=False),
    Column("notes", JSON, nullable=False),
    # What reproduces a failure alone, as one types it; NULL for what did not fail.
    Column("command", Text),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("export_pk", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("path", Text, nullable=False),
    Column("main_file", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("files", JSON, nullable=False),
    ForeignKeyConstraint(["export_pk", "number"], ["attempts.export_pk", "attempts.number"]),
)

metrics = Table(
    "metrics",
    metadata,
    Column("export_pk", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("name", String(128), primary_key=True),
    Column("baseline", Double),
    Column("exported", Double),
    Column("delta", Double),
    # The 95% confidence interval of the delta, and what it was judged by; NULL for what is not judged.
    Column("low", Double),
    Column("high", Double),
    Column("tolerance", Double),
    Column("origin", Text),
    ForeignKeyConstraint(["export_pk", "number"], ["attempts.export_pk", "attempts.number"]),
)

#: Where the outputs of a drifted export begin to differ, as JSON.
drifts = Table(
    "drifts",
    metadata,
    Column("export_pk", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("report", JSON, nullable=False),
    ForeignKeyConstraint(["export_pk", "number"], ["attempts.export_pk", "attempts.number"]),
)

failures = Table(
    "failures",
    metadata,
    # No attempt has to exist: an export may be cancelled before its first.
    Column("export_pk", Integer, ForeignKey("exports.pk"), primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("code", String(64), nullable=False),
    Column("stage", String(16), nullable=False),
    Column("message", Text, nullable=False),
    Column("hint", Text, nullable=False),
    Column("retryable", Boolean, nullable=False),
    Column("details", JSON, nullable=False),
    Column("recorded_at", String(32), nullable=False),
)

baselines = Table(
    "baselines",
    metadata,
    Column("run_id", String(64), ForeignKey("runs.id"), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("checkpoint_id", Integer, ForeignKey("checkpoints.id"), nullable=False),
    Column("dataset", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("seconds", Double),
    Column("failure", JSON),
    Column("finished_at", String(32)),
    Index("ix_baselines_key", "key", "status", "finished_at"),
)

#: Tries of baselines that came to an end.
baseline_attempts = Table(
    "baseline_attempts",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("status", String(16), nullable=False),
    Column("log", Text, nullable=False),
    Column("seconds", Double),
    Column("failure", JSON),
    Column("finished_at", String(32), nullable=False),
    ForeignKeyConstraint(["run_id", "key"], ["baselines.run_id", "baselines.key"]),
    Index("ix_baseline_attempts_key", "key"),
)

baseline_metrics = Table(
    "baseline_metrics",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("value", Double),
    ForeignKeyConstraint(["run_id", "key"], ["baselines.run_id", "baselines.key"]),
)
