"""Packages whose own code is left unread until somebody needs it.

A generated client imports all that it has in its `__init__`: the Kubernetes client's models, seven hundred modules, are
half a second of every step's start, and a connection uses none of them.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any

_LOCK = threading.RLock()


def defer(*packages: str) -> None:
    """From now on importing a module of these packages (each after the package that it is in) does not run theirs.

    Whoever then asks one of them for a name of its own gets it: that is when it runs. One that is imported already
    stays as it is.
    """
    with _LOCK:
        for name in packages:
            if name in sys.modules:
                continue
            spec = importlib.util.find_spec(name)
            if spec is None or spec.loader is None:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            package = importlib.util.module_from_spec(spec)
            package.__class__ = _Deferred
            sys.modules[name] = package
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, package)


class _Deferred(ModuleType):
    """A package that has not run."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and importlib.util.find_spec(f"{self.__name__}.{name}"):
            # `from package import module`, which asks for the name first.
            return importlib.import_module(f"{self.__name__}.{name}")
        with _LOCK:
            if self.__dict__.get("_runs"):
                # It asks itself: it has no such name, or another thread has let it run meanwhile.
                return _own(self, name)
            self.__dict__["_runs"] = True
            loader: Any = self.__loader__
            loader.exec_module(self)
        return _own(self, name)


def _own(module: ModuleType, name: str) -> Any:
    try:
        return module.__dict__[name]
    except KeyError:
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}", name=name, obj=module) from None
