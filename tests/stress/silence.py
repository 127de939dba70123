"""Runs tests where no other machine can be reached and nothing can be written but one folder, and counts the attempts.

    python tests/stress/silence.py tests                     # the whole suite
    python tests/stress/silence.py tests/cli -k search       # arguments of pytest

All that the tests start is in name spaces of its own (`unshare`): a network of the loopback device alone, and a file
system that is read-only but for a temporary folder, the home folder in it, and /dev. The kernel counts what any process
tries to send elsewhere, also in C and to look up a name, and the tests after which the count rose are named. At the end
the home folder must hold nothing but the documented places: `.cache/voken` and `.local/share/voken`.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCUMENTED = (".cache/voken/", ".local/share/voken/")
OF_THE_TOOLS = (".cache/pip/", ".cache/uv/", ".cache/torch/", ".cache/matplotlib/", ".config/matplotlib/")
"""Written by what the tests use to build, install and draw, and by no command of voken."""
ON_PURPOSE = ".invalid"
"""Tests with this in their names ask a command for a name that does not exist. Looking it up is what they are about."""
_REPORT = "VOKEN_SILENCE_REPORT"
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18


def attempts() -> int:
    """How many packets to other machines were asked for in this network, TCP and UDP, IPv4 and IPv6."""
    names, values = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line[:3] == "Ip:"]
    found = int(values[names.index("OutNoRoutes")])
    snmp6 = Path("/proc/net/snmp6")
    lines = snmp6.read_text().splitlines() if snmp6.exists() else []
    return found + sum(int(line.split()[1]) for line in lines if line.startswith("Ip6OutNoRoutes"))


def enter(writable: Path) -> None:
    """Start the loopback device, and make all but `writable` read-only. In name spaces of its own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: Path, target: Path, flags: int) -> None:
        if libc.mount(os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(flags), None):
            raise OSError(ctypes.get_errno(), f"mount {target}: {os.strerror(ctypes.get_errno())}")

    mount(Path("none"), Path("/"), _MS_REC | _MS_PRIVATE)
    mount(writable, writable, _MS_BIND)
    # a name server that nobody can reach, so that look-ups are counted even if the usual one is on this machine
    (writable / "resolv.conf").write_text("nameserver 192.0.2.1\noptions timeout:1 attempts:1\n")
    mount(writable / "resolv.conf", Path("/etc/resolv.conf").resolve(), _MS_BIND)
    for place in _mounted(writable):
        mount(place, place, _MS_REMOUNT | _MS_BIND | _MS_RDONLY)


def _mounted(writable: Path) -> Iterator[Path]:
    """Where disks are mounted, but not `writable` and what the system itself keeps in files."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        path = Path(place.encode().decode("unicode_escape"))
        apart = ("/proc", "/sys", "/dev", str(writable))
        if "rw" in options.split(",") and not place.startswith(apart) and kind not in ("proc", "sysfs"):
            yield path


class Silence:
    """A plugin of pytest: names the tests after which the count of attempts rose."""

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Count before and after one test."""
        before = attempts()
        result = yield
        if (count := attempts() - before) and ON_PURPOSE not in item.nodeid:
            with Path(os.environ[_REPORT]).open("a") as report:
                report.write(f"{item.nodeid}: {count} attempts to reach another machine\n")
        return result


def written_at_home(home: Path) -> list[str]:
    """The files in the home folder that are in none of the documented places."""
    files = sorted(path.relative_to(home).as_posix() for path in home.rglob("*") if not path.is_dir())
    return [file for file in files if not file.startswith(DOCUMENTED + OF_THE_TOOLS)]


def run(tests: list[str]) -> int:
    """Run pytest in there. Returns its exit code, or 1 if something was reported."""
    with tempfile.TemporaryDirectory(prefix="voken-silence-") as work:
        command = ["unshare", "--user", "--map-root-user", "--net", "--mount", sys.executable, __file__, "--in", work]
        for name in ("home", "tmp"):
            (Path(work) / name).mkdir()
        browsers = os.environ.get("PLAYWRIGHT_BROWSERS_PATH", str(Path.home() / ".cache" / "ms-playwright"))
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}
        environment |= {
            "HOME": f"{work}/home",
            "TMPDIR": f"{work}/tmp",
            "HYPOTHESIS_STORAGE_DIRECTORY": f"{work}/hypothesis",
            "PLAYWRIGHT_BROWSERS_PATH": browsers,
            "PYTHONDONTWRITEBYTECODE": "1",
            _REPORT: f"{work}/report",
        }
        code = subprocess.run([*command, *tests], env=environment, cwd=REPOSITORY, check=False).returncode
        report = Path(work) / "report"
        faults = report.read_text().splitlines() if report.exists() else []
        faults += [f"~/{file} was written" for file in written_at_home(Path(work) / "home")]
        print("\n".join(faults) if faults else "no attempt to reach another machine, and nothing written elsewhere")
        for path in Path(work).rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        return code or bool(faults)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in", dest="writable", type=Path, help=argparse.SUPPRESS)
    options, tests = parser.parse_known_args()
    if options.writable is None:
        if shutil.which("unshare") is None:
            sys.exit("This needs unshare (util-linux), which is not installed.")
        sys.exit(run(tests))
    if _REPORT not in os.environ:
        sys.exit("--in is for this program itself: outside of name spaces it would make the whole disk read-only.")
    enter(options.writable)
    sys.exit(pytest.main(["-q", "-n", "0", "-p", "no:cacheprovider", *tests], [Silence()]))


if __name__ == "__main__":
    main()
