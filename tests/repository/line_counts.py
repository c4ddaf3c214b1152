"""Counts lines of code by package: Python and Cython, without blank lines, comments and docstrings.

    line_counts.py            print the counts, compared with those that are recorded
    line_counts.py --update   record the counts of now; the commit's body says why one rose

``lines_of_code.json`` records the counts of now and those of the base. A test compares it with the
repository, so that no package grows unseen. A file counts where it lies.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
RECORD: Final = Path(__file__).with_name("lines_of_code.json")
PACKAGES: Final = (
    *("fairlead", "gateway", "kvstore", "operator", "autoscaler", "cli", "downloader"),
    *("sim", "bench", "testing", "scripts", "e2e", "tests"),
)
_SUFFIXES: Final = (".py", ".pyx", ".pxd")
_TOKEN: Final = re.compile(
    r"""\#[^\n]*
      | [rRbBuUfF]{0,2}(?:\"{3}(?:\\.|(?!\"{3}).)*\"{3} | '{3}(?:\\.|(?!'{3}).)*'{3}
        | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*')""",
    re.VERBOSE | re.DOTALL,
)
_CONTINUES: Final = re.compile(r"(?:[(\[{,=+\-*/%|&^~<>\\\"']|\b(?:and|else|if|in|is|not|or|return|yield))\s*\Z")
"""The end of a text after which a string is a part of an expression."""


def code_lines(text: str) -> int:
    """Returns how many lines of a source have code.

    A docstring is a triple-quoted string that stands alone, after a definition or an assignment.
    """
    parts, end = [], 0
    for token in _TOKEN.finditer(text):
        parts.append(text[end : token.start()])
        end = token.end()
        if token[0][0] != "#" and not _is_docstring(text, token, parts):
            parts.append(token[0])
    parts.append(text[end:])
    return sum(1 for line in "".join(parts).splitlines() if line.strip())


def _is_docstring(text: str, token: re.Match[str], before: list[str]) -> bool:
    """Whether a string is alone in its lines and no part of an expression."""
    if '"""' not in token[0][:5]:
        return False
    start = text.rfind("\n", 0, token.start()) + 1
    stop = text.find("\n", token.end())
    rest = text[token.end() : stop if stop >= 0 else len(text)]
    if text[start : token.start()].strip() or rest.partition("#")[0].strip():
        return False
    earlier = next((part for part in reversed(before) if part.strip()), "")
    return _CONTINUES.search(earlier) is None


def count_packages(root: Path = ROOT) -> dict[str, int]:
    """Returns the lines of code of each package, of the files that git knows."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
    counts = Counter(dict.fromkeys(PACKAGES, 0))
    for name in listed.split("\0"):
        package = name.partition("/")[0]
        path = root / name
        if package in counts and name.endswith(_SUFFIXES) and path.is_file():
            counts[package] += code_lines(path.read_text(encoding="utf-8"))
    return dict(counts)


def recorded() -> dict[str, dict[str, int]]:
    """Returns the recorded counts: ``base`` and ``now``."""
    counts: dict[str, dict[str, int]] = json.loads(RECORD.read_text(encoding="utf-8"))
    return counts


def main(arguments: list[str]) -> int:
    """Prints or records the counts."""
    counts = count_packages()
    record = recorded() if RECORD.exists() else {"base": counts}
    if arguments == ["--update"]:
        RECORD.write_text(json.dumps({**record, "now": counts}, indent=1) + "\n", encoding="utf-8")
    base, known = record["base"], record.get("now", {})
    for package, count in counts.items():
        print(f"{package:12} {count:7,}  {count / base[package]:5.2f} × base  {count - known.get(package, count):+6}")
    print(f"{'all':12} {sum(counts.values()):7,}  {sum(counts.values()) / sum(base.values()):5.2f} × base")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
