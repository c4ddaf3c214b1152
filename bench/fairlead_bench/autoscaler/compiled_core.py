"""The compiled copy of the autoscaler's core, made by ``scripts/compile.py --autoscaler``.

Why: 10,000 examples of a property test are up to a million ticks. A compiled core plans one in 0.3
ms, an interpreted one in 0.75 ms, and both plan the same. The processes of the tests inherit the
path of this one, so they import the copy, too.
"""

import os
import sys
from pathlib import Path

import fairlead_autoscaler
from fairlead.runtime.compiled_build import is_compiled
from fairlead_autoscaler.core import scaling_core
from fairlead_sim import compiled


def package_folders() -> list[Path]:
    """Returns the folders of the packages in the copy."""
    return [*compiled.package_folders(), *map(Path, fairlead_autoscaler.__path__)]


def run_compiled() -> None:
    """Restarts this program from the copy; returns if there is none or it runs already."""
    environ = compiled.copy_environment(os.environ, package_folders())
    if environ != os.environ and not is_compiled(scaling_core.__file__):
        os.execve(sys.executable, [sys.executable, *sys.argv], environ)
