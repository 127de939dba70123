"""At most one process at a time brings a collection up to date; the others are told which one."""

from __future__ import annotations

import os
import platform
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from voken.artifact import open_database
from voken.errors import BusyError

FILE = ".index.lock.sqlite3"


@contextmanager
def index_lock(collection: Path) -> Iterator[None]:
    """Hold the lock during the block. SQLite releases the lock of a killed process.

    Raises `BusyError`, which names the process that holds it. A folder that cannot be written is not locked: nobody can
    bring that collection up to date.
    """
    if not os.access(collection, os.W_OK):
        yield
        return
    damaged = "the lock of the collection cannot be used ({why}). Remove it"
    with open_database(collection / FILE, damaged=damaged, create=True, wait=0) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE IF NOT EXISTS holder (process INTEGER, host TEXT, since TEXT)")
            connection.execute("DELETE FROM holder")
            now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
            connection.execute("INSERT INTO holder VALUES (?, ?, ?)", (os.getpid(), platform.node(), now))
            connection.execute("COMMIT")
            connection.execute("BEGIN IMMEDIATE")  # others may read who it is
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            raise BusyError(
                f"{collection}: {_holder(connection)} is indexing it. Wait for it or end it, and run the command again."
            ) from error
        yield
        connection.execute("ROLLBACK")


def _holder(connection: sqlite3.Connection) -> str:
    try:
        process, host, since = connection.execute("SELECT process, host, since FROM holder").fetchone()
    except (sqlite3.Error, TypeError):
        return "another process"
    return f"process {process} on {host}, since {since},"
