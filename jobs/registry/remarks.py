"""What was remarked while a run's exports were made: repairs of a config, checks that could not be made."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, and_, select

from zooport.jobs.registry.listing import OWNER
from zooport.jobs.registry.schema import attempts, exports


@dataclass(frozen=True)
class Remark:
    """A remark on one export.

    Attributes:
        model: the export's model.
        format: its format.
        text: one line.
    """

    model: str
    format: str
    text: str


def remarks_of(connection: Connection, run_id: str) -> list[Remark]:
    """Return the remarks on the exports of a run, in their order; a cached one has its source's."""
    shown = and_(attempts.c.export_pk == OWNER, attempts.c.number == exports.c.attempt)
    query = (
        select(exports.c.model, exports.c.format, attempts.c.notes)
        .join(attempts, shown)
        .where(exports.c.run_id == run_id)
        .order_by(exports.c.pk)
    )
    return [
        Remark(row.model, row.format, str(note))
        for row in connection.execute(query)
        for note in row.notes or ()
    ]
