"""SQLite files, opened a call at a time: nothing to share between threads, nothing to survive a fork, 0.1 ms each.

What SQLite refuses is told as what voken raises, with the file and the remedy. This module knows no table.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from voken.errors import CorruptArtifactError, StorageError

WAIT_SECONDS = 60.0
"""How long another process may keep a file locked."""
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_SCHEMA}
_REFUSED = {
    sqlite3.SQLITE_FULL: "the disk is full. Free some space and run the same command again; what was saved is kept",
    sqlite3.SQLITE_IOERR: "the disk failed to read or write. Check its space and health and run the command again",
    sqlite3.SQLITE_READONLY: "cannot write there. Choose another folder or mend its permissions",
    sqlite3.SQLITE_PERM: "cannot write there. Choose another folder or mend its permissions",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened. Choose another folder or mend its permissions",
    sqlite3.SQLITE_BUSY: "another process kept it locked for a minute. Wait for it or end it and run the command again",
    sqlite3.SQLITE_LOCKED: "another process kept it locked. Wait for it or end it, and run the command again",
}


@contextmanager
def connected(
    path: Path, *, damaged: str, create: bool = False, wait: float | None = None
) -> Iterator[sqlite3.Connection]:
    """A connection that commits what it is told to (`BEGIN` … `COMMIT`), closed at the end.

    `damaged` says what the file is and what to do where it cannot be read: "the cache is damaged ({why}). …".
    Without `create` the file must be there. `wait` is how many seconds another process may keep it locked; None: a
    minute. Raises `StorageError` and `CorruptArtifactError`.
    """
    connection: sqlite3.Connection | None = None
    try:
        mode = "rwc" if create else "rw"
        uri = f"{Path(path).absolute().as_uri()}?mode={mode}"
        connection = sqlite3.connect(
            uri, uri=True, timeout=WAIT_SECONDS if wait is None else wait, isolation_level=None
        )
        yield connection
    except sqlite3.DatabaseError as error:
        # the low byte is the kind of error, the rest its particulars (sqlite.org/rescode.html)
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_IOERR) & 0xFF
        if code in _CORRUPT:
            raise CorruptArtifactError(f"{path}: {damaged.format(why=error)}") from error
        raise StorageError(f"{path}: {_REFUSED.get(code, f'{error}. Run the command again')}.") from error
    finally:
        if connection is not None:
            connection.close()
