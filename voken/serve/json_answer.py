"""JSON of anything: names of files may hold bytes that are no UTF-8, metadata numbers that JSON has not."""

from __future__ import annotations

import json
import math
from typing import Any

from starlette.responses import Response


class JsonAnswer(Response):
    """Lone surrogates are escaped, NaN and infinities become null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """As bytes."""
        try:
            return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")
        except ValueError:
            return json.dumps(_finite(content), allow_nan=False, separators=(",", ":")).encode("ascii")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value
