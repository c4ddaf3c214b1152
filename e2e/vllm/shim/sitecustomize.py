"""Lets Mooncake's connector run where there is no graphics card: it asks torch for the current one, and waits for events on it.

Python reads a module of this name by itself at every start, also in the engine's worker processes; it does something only where
``WITHOUT_A_CARD`` is set. Answers are those of a machine with one device whose work is always done.
"""

import importlib.abc
import importlib.machinery
import os
import sys
from types import ModuleType
from typing import Any


class _Event:
    """What has always happened already."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    def wait(self, *_: Any) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True


def _only_device() -> int:
    return 0


def _nothing(*_: Any) -> None:
    return None


_ANSWERS: dict[str, dict[str, Any]] = {
    "torch.accelerator": {"current_device_index": _only_device, "set_device_index": _nothing},
    "torch.cuda": {"current_device": _only_device, "set_device": _nothing, "synchronize": _nothing, "Event": _Event},
}


class _Finder(importlib.abc.MetaPathFinder):
    """Finds these modules as Python would, and lays the answers over them once they are loaded."""

    def __init__(self) -> None:
        self._looking = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        del target
        if name not in _ANSWERS or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.machinery.PathFinder.find_spec(name, path)
        finally:
            self._looking = False
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_answer(module: ModuleType) -> None:
            load(module)
            for known, answer in _ANSWERS[name].items():
                setattr(module, known, answer)

        spec.loader.exec_module = load_and_answer  # type: ignore[method-assign]
        return spec


if os.environ.get("WITHOUT_A_CARD"):
    sys.meta_path.insert(0, _Finder())
