"""What is installed, found by looking: the modules of a package, and entry points.

Python's own ways answer "none" where a directory cannot be listed, for instance when no more files may be open. Here
that is an error, so that nothing concludes from it, and nobody remembers it.
"""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import InputError, MachineError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.metadata import EntryPoint, EntryPoints


def modules(package: str, directories: Iterable[str]) -> list[str]:
    """Return the full names of the modules in a package, without packages in it; `directories` is its `__path__`.

    MachineError where there seem to be none.
    """
    places = list(directories)
    found = [f"{package}.{module.name}" for module in pkgutil.iter_modules(places) if not module.ispkg]
    if not found:
        raise _unlisted(f"the modules of {package} cannot be found", places)
    return found


def plugins(group: str, name: str | None = None) -> EntryPoints:
    """Return the entry points of a group, or the one of that name in it; MachineError where the group seems empty."""
    found = entry_points(group=group)
    if not found:
        raise _unlisted(f"nothing is installed as {group}", [os.path.dirname(__file__)])  # noqa: PTH120 - light
    return found if name is None else found.select(name=name)


def load(found: EntryPoint) -> Any:
    """Return what an entry point names; InputError where another distribution, or a file, has the package's name."""
    top, _, inside = found.module.partition(".")
    spec = importlib.util.find_spec(top)
    if inside and spec is not None and spec.submodule_search_locations is None:  # it is not run to find that out
        raise _foreign(top, "it is a file", spec.origin)
    try:
        return found.load()
    except (ImportError, AttributeError) as error:
        place = getattr(sys.modules.get(top), "__file__", None)
        if place is None or os.path.exists(os.path.join(os.path.dirname(place), "command.py")):  # noqa: PTH110, PTH118, PTH120
            raise
        raise _foreign(top, str(error), place) from None


def _foreign(package: str, why: str, place: str | None) -> InputError:
    return InputError(
        f"the package {package} of this environment is not gguf-mla's ({why})",
        found=place,
        remedy="Another distribution, or a file in the current directory, has that name, too: install gguf-mla into an "
        "environment of its own, or rename the file",
    )


def _unlisted(what: str, places: Iterable[str]) -> MachineError:
    """Return the error with the system's own words, where listing the directories fails."""
    for place in places:
        try:
            os.listdir(place)  # noqa: PTH208 - light
        except OSError as error:
            return MachineError(f"{what} ({error.strerror})", remedy="Allow more open files (ulimit -n), and run again")
    return MachineError(what, remedy="Install gguf-mla again, and allow enough open files (ulimit -n)")
