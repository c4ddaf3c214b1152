"""Puts ``e2e`` where the tests of its cluster find it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "e2e"))
