"""The texts "0", "1", "2" …: ids that cost nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload


class NumberColumn(Sequence[str]):
    """The numbers below `count`, as texts."""

    nbytes = 0

    def __init__(self, count: int) -> None:
        self._numbers = range(count)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        found = self._numbers[index]
        return str(found) if isinstance(found, int) else list(map(str, found))
