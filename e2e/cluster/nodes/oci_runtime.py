#!/usr/bin/env python3
"""podman's runtime on machines that lack CAP_SYS_RESOURCE: runc, after what needs it is taken out.

podman writes limits, scores and that capability into what it gives its runtime, and each start
would end with "setrlimit: Operation not permitted".
"""

import json
import os
import sys
from itertools import pairwise
from pathlib import Path

_CAPABILITY = "CAP_SYS_RESOURCE"


def main(arguments: list[str]) -> None:
    for option, value in pairwise(arguments):
        if option in ("--bundle", "-b"):
            _relax(Path(value) / "config.json")
        elif option in ("--process", "-p"):
            _relax(Path(value))
    os.execvp("runc", ["runc", *arguments])


def _relax(path: Path) -> None:
    """Rewrites a bundle's configuration, or that of one more process."""
    if not path.is_file():
        return
    config = json.loads(path.read_text())
    process = config.get("process", config)
    for name in ("rlimits", "oomScoreAdj"):
        process.pop(name, None)
    for names in (process.get("capabilities") or {}).values():
        if _CAPABILITY in (names or ()):
            names.remove(_CAPABILITY)
    path.write_text(json.dumps(config))


if __name__ == "__main__":
    main(sys.argv[1:])
