"""``make licenses``: writes THIRD_PARTY_LICENSES from the lock and the installed packages."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The file is run by its path: the package is found from the repository root.
sys.path[0] = str(ROOT)

from scripts.generators.package_licences import (  # noqa: E402
    ALLOWED,
    FILE,
    licence_ids,
    licences_text,
    package_licences,
)


def main() -> int:
    """Returns 0 when the file was written, 1 when a package has a licence that is not allowed."""
    refused = [package.line for package in package_licences(ROOT) if licence_ids(package.expression) - ALLOWED]
    if refused:
        print("not allowed:", *refused, sep="\n  ", file=sys.stderr)
        return 1
    (ROOT / FILE).write_text(licences_text(ROOT), encoding="utf-8")
    print(f"wrote {FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
