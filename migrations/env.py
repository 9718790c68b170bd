"""Alembic's entry: runs migrations on the connection that the registry hands over.

The caller owns the transaction (:mod:`zooport.jobs.registry.revisions`), so that a migration which fails
leaves no trace.
"""

from __future__ import annotations

from alembic import context

from zooport.jobs.registry.schema import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True
)
context.run_migrations()
