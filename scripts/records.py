"""Lists the records of bench/results that are older than the code that they measure.

    records.py           print each old record: its date, and the commits that changed its code
    records.py routing   print these commits of one record

``bench/records.yaml`` names the code of each record. A record is of the commit that brought the
newest of its numbers, so an edit that only takes rows out does not renew it. It is old if a later
commit has changed a Python or Cython file of its code.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).resolve().parents[1]
_CODE: Final = (".py", ".pyx", ".pxd")
_QUOTED: Final = re.compile(r"\bresults/([\w-]+\.json)")


@dataclass(frozen=True, slots=True)
class RecordAge:
    """The age of a record.

    made_on: the day of its commit, `YYYY-MM-DD`.
    changes: the later commits that changed its code, as `HASH SUBJECT`, the newest first.
    """

    made_on: str
    changes: tuple[str, ...]


def measured_code(root: Path = ROOT) -> Mapping[str, Sequence[str]]:
    found: Mapping[str, Sequence[str]] = yaml.safe_load((root / "bench" / "records.yaml").read_text())
    return found


@cache
def record_age(name: str, root: Path = ROOT) -> RecordAge | None:
    """Returns the age of a record; None where git does not know it."""
    path = f"bench/results/{name}"
    commits = _git(root, "log", "--format=%H %cs", "--", path).splitlines()
    if not commits:
        return None
    made = commits[0]
    now = _numbers((root / path).read_text())
    for commit in commits:
        if now - _numbers(_git(root, "show", f"{commit.split()[0]}:{path}")):
            break  # numbers of today are not there yet
        made = commit
    hash_, day = made.split()
    pathspecs = [f"{folder}/**/*{suffix}" for folder in measured_code(root)[name] for suffix in _CODE]
    changes = _git(root, "log", "--format=%h %s", f"{hash_}..HEAD", "--", *(f":(glob){spec}" for spec in pathspecs))
    return RecordAge(day, tuple(changes.splitlines()))


def note_on_old(markdown: str) -> str:
    """Returns a note on the records that a page quotes and that are old; empty if none is."""
    rows = []
    for name in sorted(set(_QUOTED.findall(markdown)) & measured_code().keys()):
        age = record_age(name)
        if age is not None and age.changes:
            rows.append(f"    - `{name}`, of {age.made_on}: {len(age.changes)} changes since\n")
    title = "Records of this page that are older than the code that they measure"
    return f'\n\n??? note "{title}"\n\n{"".join(rows)}' if rows else ""


def _numbers(text: str) -> Counter[float]:
    try:
        return Counter(_leaves(json.loads(text)))
    except json.JSONDecodeError:
        return Counter()


def _leaves(value: Any) -> Iterator[float]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def _git(root: Path, *words: str) -> str:
    """Returns the output of git; empty where it fails, as outside of a checkout."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def main(arguments: Sequence[str]) -> int:
    """0 if each record is of today's code, else 1."""
    wanted = {f"{name.removesuffix('.json')}.json" for name in arguments}
    old = 0
    for name in measured_code():
        age = record_age(name)
        if wanted and name not in wanted:
            continue
        if age is None:
            print(f"{name:32} git does not know it")
        elif age.changes:
            old += 1
            print(f"{name:32} {age.made_on}  {len(age.changes):4} commits since")
            print(*(f"    {change}" for change in age.changes if wanted), sep="\n", end="\n" if wanted else "")
    return 1 if old else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
