"""Stand-in for the package `sglang-kernel`, whose import fails on a machine without CUDA.

Every name below it resolves, as a module or as an attribute, so SGLang starts. Every call raises
NotImplementedError: on processors, SGLang uses the operations of torch, and calls none of them.

With `UNPINNED` in the environment, tensors are never in pinned memory, which needs CUDA. SGLang's
adapters ask for it on every machine.
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

UNPINNED = "FAIRLEAD_UNPINNED"
__path__ = []
__version__ = "0.0.0"


class MissingKernel:
    """An operation that has no code here.

    Its attributes are missing kernels as well.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> "MissingKernel":
        return _missing(f"{self._name}.{name}", name)

    def __call__(self, *_: object, **__: object) -> NoReturn:
        raise NotImplementedError(f"{self._name} needs the package sglang-kernel, which needs CUDA")


class _KernelModules(MetaPathFinder, Loader):
    """Finds every module below this package, and leaves it empty."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.startswith(f"{__name__}.") else None

    def exec_module(self, module: ModuleType) -> None:
        prefix = module.__name__
        vars(module)["__getattr__"] = lambda name: _missing(f"{prefix}.{name}", name)


def __getattr__(name: str) -> MissingKernel:
    return _missing(f"{__name__}.{name}", name)


def _missing(full_name: str, name: str) -> MissingKernel:
    if name.startswith("__"):  # Python asks for these itself
        raise AttributeError(full_name)
    return MissingKernel(full_name)


def _never_pinned(create: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *values, pin_memory=False, **options: create(*values, **options)


sys.meta_path.append(_KernelModules())
if UNPINNED in os.environ:
    import torch

    for _name in ("empty", "ones", "tensor", "zeros"):
        setattr(torch, _name, _never_pinned(getattr(torch, _name)))
    torch.Tensor.pin_memory = lambda tensor, *_: tensor
