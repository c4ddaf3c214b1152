"""``python -m fairlead_kvstore --fleet FILE --redis URL``: an indexer, see ``command.py``.

Kept light: where there is a compiled copy of these sources, the process goes on as that one.
"""

import os
import sys

from fairlead.runtime.compiled_build import worker_environment


def main() -> int:
    """Its exit code."""
    environ = worker_environment(os.environ)
    if environ != os.environ:
        os.execve(sys.executable, [sys.executable, "-m", "fairlead_kvstore", *sys.argv[1:]], environ)
    from fairlead_kvstore.indexer import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
