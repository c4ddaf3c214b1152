"""Lists of pages: the index of the decision records."""

import re
from pathlib import Path


def decisions_page(root: Path, note: str) -> str:
    """Returns the index of the decision records, by number."""
    rows = []
    for path in sorted((root / "docs" / "decisions").glob("[0-9]*.md")):
        title = re.match(r"# (?:\d+[.:]? *)?(.*)", path.read_text(encoding="utf-8"))
        if title is None:
            raise ValueError(f"{path.name} does not begin with a heading")
        rows.append(f"| {path.name[:4]} | [{title[1]}]({path.name}) |\n")
    return (
        f"{note}# Decisions\n\nWhy Fairlead is built as it is. A record is not changed when a later one supersedes it.\n\n"
        f"| number | decision |\n|---|---|\n{''.join(rows)}"
    )
