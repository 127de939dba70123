"""Time zones of the process, for tests."""

import os
import time
from contextlib import contextmanager


@contextmanager
def in_zone(name):
    """Run the block in the time zone `name`, e.g. America/New_York."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = name
    time.tzset()
    try:
        yield
    finally:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()
