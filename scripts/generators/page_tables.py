"""Generated tables in pages that people edit. A table stands between two comments."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_TABLE: Final = re.compile(r"(<!-- Table: ([a-z-]+)\. -->\n).*?(<!-- End of the table\. -->\n)", re.S)


def with_tables(path: Path, tables: Mapping[str, str]) -> str:
    """Returns the page with these tables by name. Raises KeyError for an unknown name."""
    page = path.read_text(encoding="utf-8")
    return _TABLE.sub(lambda found: f"{found[1]}{tables[found[2]]}{found[3]}", page)
