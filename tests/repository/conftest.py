"""Puts the rules of the repository where their tests find them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
