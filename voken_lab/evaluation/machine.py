"""The machine that a speed was measured on. A speed means nothing without it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Machine:
    """Processor, cores that this process may use, threads and versions.

    `threads` is the number of threads that torch uses within one operation, or 0 if torch is not loaded.
    `accelerator` is empty on a CPU.
    """

    cpu: str
    cores: int
    platform: str
    python: str
    torch: str
    numpy: str
    threads: int
    accelerator: str = ""

    @classmethod
    def here(cls) -> Self:
        """Describe this machine, without importing torch."""
        torch = sys.modules.get("torch")
        has_gpu = torch is not None and torch.cuda.is_available()
        return cls(
            cpu=_cpu(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            platform=platform.platform(),
            python=platform.python_version(),
            torch=_version("torch"),
            numpy=_version("numpy"),
            threads=torch.get_num_threads() if torch is not None else 0,
            accelerator=torch.cuda.get_device_name() if torch is not None and has_gpu else "",
        )


def processor_of(machine: Mapping[str, Any]) -> str:
    """Processor and cores of a saved `Machine`: "AMD EPYC, 2 cores"."""
    return f"{machine['cpu']}, {machine['cores']} {'core' if machine['cores'] == 1 else 'cores'}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()
