"""An installation of voken without its extras, made of this one: modules that only extras bring are not found.

A child process imports this module first.
"""

import sys
from importlib.machinery import PathFinder

from voken.extras import MODULES_OF_EXTRAS

HIDDEN = {module for modules in MODULES_OF_EXTRAS.values() for module in modules.split()}


class SearchOnlyFinder(PathFinder):
    """Finds what a search needs."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        """See `importlib`."""
        return None if fullname.partition(".")[0] in HIDDEN else PathFinder.find_spec(fullname, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = SearchOnlyFinder
