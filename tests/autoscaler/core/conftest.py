"""What these tests share (``coretests``) is found beside this file: test folders are no packages."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
