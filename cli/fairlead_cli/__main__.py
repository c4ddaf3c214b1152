"""``python -m fairlead_cli`` and the console scripts ``fairlead`` and ``kubectl-fairlead``."""

import sys

from fairlead.errors import FairleadError
from fairlead_cli.app import build


def main() -> None:
    """Run one verb; a FairleadError is told in one line and exits 2, without a traceback."""
    try:
        build()()
    except FairleadError as error:
        print(f"fairlead: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    main()
