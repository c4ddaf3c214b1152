"""Runs the tests that failed in the last run of pytest once more, if they are few.

For CI alone (`SECOND_TRY=1`): work must not be lost to a test that is red by chance. Such a test is
still a fault; its name stands in the output, and `make nightly` counts it.

Exits with the second run's status; with 1 where more than `MAX_TESTS` failed, or none did.
"""

import json
import subprocess
import sys
from pathlib import Path

MAX_TESTS = 3
FAILED = Path(__file__).parents[2] / ".pytest_cache" / "v" / "cache" / "lastfailed"


def failed_tests() -> list[str]:
    return sorted(json.loads(FAILED.read_text())) if FAILED.exists() else []


def main() -> int:
    """Runs the failed tests."""
    names = failed_tests()
    if not 0 < len(names) <= MAX_TESTS:
        print(f"no second try: {len(names)} tests or files failed, 1 to {MAX_TESTS} would be tried again")
        return 1
    print("once more, since it may have been by chance:", *names, sep="\n  ", flush=True)
    return subprocess.run([sys.executable, "-m", "pytest", "-q", *names], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
