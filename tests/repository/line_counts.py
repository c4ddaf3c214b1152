"""Counts lines of code, and holds those of the product, its tools and its tests to ceilings.

    line_counts.py           print the counts, with the ceilings of their groups
    line_counts.py --lower   set each ceiling to the count of now where that is less

``lines_of_code.json`` has the ceilings. Nothing here raises one: a person does, by no more than
what a feature was granted, or what the same change removed elsewhere.

Python and Cython count without blank lines, comments and docstrings. Other sources, and data in the
packages of product and tools, count by lines that are not blank. So no line is saved by moving it
into data. What a generator or a lock writes does not count. A file counts where it lies.
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
GROUPS: Final = {
    "product": ("fairlead", "gateway", "kvstore", "operator", "autoscaler", "cli", "downloader"),
    "tools": ("sim", "bench", "testing", "scripts", "e2e"),
    "tests": ("tests",),
}
_DATA: Final = re.compile(r"\.(?:json|yaml|toml|txt|js|css|html|c|h)$")
_WRITTEN_BY_PROGRAMS: Final = re.compile(
    r"^tests/|^bench/results/|(?:requirements|constraints|-lock|engine_flags|prose_baseline)[^/]*$"
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
    """Returns the lines of each package, of the files that git knows."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
    counts = Counter(dict.fromkeys((package for packages in GROUPS.values() for package in packages), 0))
    for name in listed.split("\0"):
        package, path = name.partition("/")[0], root / name
        if package in counts and path.is_file():
            counts[package] += _lines(name, path)
    return dict(counts)


def _lines(name: str, path: Path) -> int:
    if name.endswith(_SUFFIXES):
        return code_lines(path.read_text(encoding="utf-8"))
    if _DATA.search(name) is None or _WRITTEN_BY_PROGRAMS.search(name) is not None:
        return 0
    return sum(1 for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def group_counts(counts: dict[str, int]) -> dict[str, int]:
    return {group: sum(counts[package] for package in packages) for group, packages in GROUPS.items()}


def ceilings() -> dict[str, int]:
    """Returns the most lines that each group may have."""
    found: dict[str, int] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def main(arguments: list[str]) -> int:
    """Prints the counts, and lowers the ceilings if asked to."""
    counts = count_packages()
    groups, most = group_counts(counts), ceilings()
    if arguments == ["--lower"]:
        most = {group: min(ceiling, groups[group]) for group, ceiling in most.items()}
        RECORD.write_text(json.dumps(most, indent=1) + "\n", encoding="utf-8")
    for group, packages in GROUPS.items():
        print(f"{group:12} {groups[group]:7,}  of at most {most[group]:,}")
        for package in packages:
            print(f"  {package:10} {counts[package]:7,}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
