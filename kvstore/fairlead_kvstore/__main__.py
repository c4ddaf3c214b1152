"""The entry point of ``python -m fairlead_kvstore --fleet FILE --redis URL``, an indexer
(``indexer/cli.py``).

It imports little: where a compiled copy of the sources exists, the process replaces itself with
that one.
"""

import os
import sys

from fairlead.runtime.compiled_build import worker_environment


def main() -> int:
    """Runs the indexer and returns its exit code."""
    environ = worker_environment(os.environ)
    if environ != os.environ:
        os.execve(sys.executable, [sys.executable, "-m", "fairlead_kvstore", *sys.argv[1:]], environ)
    from fairlead_kvstore.indexer import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
