"""The wheel and the source archive hold everything, and a search needs nothing else: built once, and used."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from builders.saved_search import save_search

ROOT = Path(__file__).parents[1]
PACKAGES = ("voken", "voken_lab")
_OTHERS = ("tests", "docs", "benchmarks")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with a wheel and a source archive, made of copies of the files that are in the repository."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for path in repository_files():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes((ROOT / path).read_bytes())
    code = f"from setuptools import build_meta as b; b.build_wheel({str(out)!r}); b.build_sdist({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    return out


def repository_files():
    """What git knows, except for tests and docs, which no wheel holds."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=False,
        capture_output=True,
    )
    if listed.returncode:
        pytest.skip("this is no clone of the repository")
    paths = listed.stdout.decode().split("\0")
    return [
        path
        for path in paths
        if path and not path.startswith(("tests/", "docs/", "benchmarks/")) and (ROOT / path).is_file()
    ]


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    compiled = {name for name in names if name.startswith("voken/decoding/_scan.") and name.endswith((".so", ".pyd"))}
    packed = {name for name in names if ".dist-info/" not in name} - compiled
    # without a compiler or Python's headers there is none, and the wheel is usable all the same
    can_compile = shutil.which("gcc") is not None and (Path(sysconfig.get_path("include")) / "Python.h").is_file()
    assert len(compiled) == can_compile
    assert packed == {path for path in repository_files() if path.split("/")[0] in PACKAGES}
    for name in ("LICENSE", "voken/encoders/imagenet_classes.LICENSE.txt"):
        assert any(path.endswith(f".dist-info/licenses/{name}") for path in names)


def test_the_source_archive_holds_what_a_wheel_is_built_from(built):
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {path for path in repository_files() if path.split("/")[0] in PACKAGES}
    assert wanted | {"pyproject.toml", "README.md", "LICENSE", "constraints.txt", "CHANGELOG.md"} <= names


def test_the_wheel_searches_with_only_the_core_install(built, tmp_path):
    """The modules of the wheel alone, far from the repository, without the packages that only extras bring."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    save_search(tmp_path)
    code = (
        "import builders.search_only, voken, sys\n"
        "assert voken.__file__.startswith(sys.argv[1]), voken.__file__\n"
        "from voken.cli import app\n"
        "app(['search', sys.argv[2], 'a cat', '-k', '3'])\n"
    )
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT / "tests")])
    answer = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site"), str(tmp_path / "collection")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert len(answer.stdout.splitlines()) == 4
