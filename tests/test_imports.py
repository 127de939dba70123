"""Every module imports as it does in a program: the other tests load jaxtyping first, which programs do not."""

import subprocess
import sys

import pytest

EVERY_MODULE = """
import importlib, pkgutil, sys
import voken, voken_lab
for package in (voken, voken_lab):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
assert "jaxtyping" not in sys.modules
"""


@pytest.mark.slow
def test_every_module_imports_without_jaxtyping():
    result = subprocess.run([sys.executable, "-c", EVERY_MODULE], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
