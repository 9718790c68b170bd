"""The registry: what was exported, how often it was tried, what came out, and why it did not.

:func:`open_registry` is the only door. Nobody outside this package sees a connection or a table; rows come
out as the plain values of :mod:`zooport.jobs.registry.records`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zooport.jobs.registry.writer import Registry


def open_registry(
    url: str | None = None, *, create: bool = True, busy_timeout: float | None = None
) -> Registry:
    """Open the registry that ``url`` names, and create it if it is not there.

    Args:
        url: a database URL, or the path of an SQLite file; None or "" takes ZOOPORT_REGISTRY, and without it
            ``sqlite:///zooport.db`` in the working directory.
        create: make a registry that is missing or empty; False raises instead.
        busy_timeout: seconds to wait for another process's lock; None takes ZOOPORT_REGISTRY_TIMEOUT or 10.

    Raises:
        Failure: ``registry.missing`` (only with ``create=False``), ``registry.unavailable`` (no such
            directory, no permission, no server), ``registry.invalid`` (another kind of file, damaged),
            ``registry.outdated`` (older or newer schema), ``registry.locked``.
    """
    # SQLAlchemy takes a fifth of a second to import: whoever needs only the records does not pay for it.
    from zooport.jobs.registry.database import open_database
    from zooport.jobs.registry.writer import Registry

    return Registry(open_database(url, create=create, busy_timeout=busy_timeout))
