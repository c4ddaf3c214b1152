"""Checks the prose of docstrings, comments, messages and pages.

``docs/contributing/style.md`` states the rules, ``docs/glossary.md`` lists the banned words.
``prose_baseline.json`` counts the findings that each file still has; a count may only fall.

    scripts/check_prose.py                     compare the repository with the baseline
    scripts/check_prose.py PATH...             print every finding below these paths
    scripts/check_prose.py --update-baseline   lower the counts of files that became better; PATH...
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BASELINE = Path(__file__).with_name("prose_baseline.json")
MAX_SENTENCE_WORDS = 25
MAX_COLUMNS = 100
MIN_MESSAGE_WORDS = 3
EMPTY_WORDS = 3

SKIPPED_FOLDERS = {".venv", ".git", "out", "dist", "build", "node_modules", "__pycache__"}
SKIPPED = ("bench/notes/", "crds/", "tests/fuzz/regressions/")
WORD_LISTS = ("docs/glossary.md", "docs/contributing/style.md", "scripts/check_prose.py")
"""Pages that quote what they ban."""
PLAIN_SUFFIXES = {".yaml", ".yml", ".tpl", ".txt", ".js", ".html", ".sh"}
PLAIN_FOLDERS = (
    "charts/",
    "examples/",
    "fairlead/",
    "gateway/",
    "operator/",
    "autoscaler/",
    "kvstore/",
    "sim/",
    "cli/",
)
"""Folders in which files of these suffixes are checked for banned words."""

TOKEN = re.compile(
    r"""(?P<comment>\#[^\n]*)
      | [rRbBuUfF]{0,2}(?:
          (?P<triple>\"{3}[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*\"{3})
        | (?P<single>"[^"\\\n]*(?:\\.[^"\\\n]*)*"|'[^'\\\n]*(?:\\.[^'\\\n]*)*'))""",
    re.VERBOSE | re.DOTALL,
)
OWNER = re.compile(r"\b(?:def|class)\s+(\w+)")
OPENING = re.compile(
    r"(?:What|How|Whether|Who|Whose|Whom|Whoever|Where|Which|Of|Those|One (?:of|that|which|who))\b|``\w+``"
)
PAGE_OPENING = re.compile(r"(?:Of (?:an?|the|those|these|what|each|all|several)|Who|Whose|Whoever|Those who)\b")
FILLERS = (
    " a about again all an and any as at be by for from get gets has have here how if in is it its itself more no not "
    "now of on once one or others out over own returns same so such that the their them there they this to up was "
    "what when which with "
)
CODE = re.compile(r"``[^`]*``|`[^`\n]*`")
BREAK = re.compile(r"(\n\s*\n|\n(?=\s*(?:[-*] |\d+\. |[a-z_*][a-z0-9_*, ]*: ))|(?<=:)\n)")
LINK = re.compile(r"!?\[([^\]]*)\]\([^)\s]*\)")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')*_]*\s+(?=[\"'(*_]*[A-Z0-9`])")


@dataclass(frozen=True, slots=True)
class Finding:
    """One violation: where it is, the rule that it breaks, and the words that break it."""

    path: str
    line: int
    rule: str
    text: str


class Prose:
    """Checks texts of one file and collects the findings."""

    def __init__(self, path: str, banned: re.Pattern[str]) -> None:
        self.findings: list[Finding] = []
        self._path = path
        self._banned = None if path in WORD_LISTS else banned

    def add(self, line: int, rule: str, text: str) -> None:
        self.findings.append(Finding(self._path, line, rule, text))

    def check_words(self, text: str, line: int) -> None:
        """Finds banned words outside of code spans."""
        if self._banned:
            for match in self._banned.finditer(blank_code(text)):
                self.add(line + text.count("\n", 0, match.start()), "word", match[0])

    def check_sentences(self, text: str, line: int, opening: re.Pattern[str] | None = None) -> None:
        """Finds sentences that are too long, or begin like ``opening`` and are no questions."""
        for part in BREAK.split(text):
            plain = LINK.sub(r"\1", CODE.sub("X", part))
            for sentence in filter(None, map(str.strip, SENTENCE_END.split(plain))):
                count = sum(1 for word in sentence.split() if re.search(r"\w", word))
                if count > MAX_SENTENCE_WORDS:
                    self.add(line, "sentence", f"{count} words: {' '.join(sentence.split()[:8])} …")
                if opening and opening.match(sentence) and not sentence.endswith("?"):
                    self.add(line, "opening", " ".join(sentence.split()[:6]))
            line += part.count("\n")

    def check_columns(self, text: str, line: int) -> None:
        """Finds lines that are too long and could be wrapped."""
        for number, content in enumerate(text.split("\n"), line):
            if len(content) > MAX_COLUMNS and max(map(len, content.split())) < MAX_COLUMNS - 20:
                self.add(number, "columns", f"{len(content)} columns")


def check_python(path: str, text: str, prose: Prose) -> None:
    """Checks docstrings, comments and, outside of tests, strings that read like messages."""
    is_test = path.startswith("tests/") or "/test_" in path
    for token in TOKEN.finditer(text):
        start = token.start()
        line_start = text.rfind("\n", 0, start) + 1
        own_line = not text[line_start:start].strip()
        line = text.count("\n", 0, start) + 1
        if token["comment"]:
            prose.check_words(token[0], line)
            if own_line:
                prose.check_columns(text[line_start : token.end()], line)
        elif token["triple"] and own_line and text[:line_start].rstrip()[-1:] not in list("([{,=+%"):
            plain = re.sub(rf"^ {{{start - line_start + 4},}}.*$", "", token["triple"][3:-3], flags=re.MULTILINE)
            check_docstring(plain, text[:line_start].rstrip()[-1_000:], line, prose)
            prose.check_columns(text[line_start : token.end()], line)
        elif not is_test and len(token[0].split()) >= MIN_MESSAGE_WORDS:
            prose.check_words(token[0], line)


def check_docstring(text: str, before: str, line: int, prose: Prose) -> None:
    """Checks one docstring; ``before`` is the code that precedes it."""
    owners = OWNER.findall(before) if before.endswith(":") else []
    opening = OPENING.match(text.strip())
    if opening and not (opening[0] == "Whether" and before.endswith("-> bool:")):
        prose.add(line, "opening", " ".join(text.split()[:6]))
    words = re.findall(r"[a-z]+", text.lower())
    if (
        words
        and len(text.split()) <= EMPTY_WORDS
        and all(is_empty(word, owners[-1] if owners else "") for word in words)
    ):
        prose.add(line, "empty", text.strip())
    prose.check_words(text, line)
    prose.check_sentences(text, line)


def is_empty(word: str, owner: str) -> bool:
    return f" {word} " in FILLERS or any(word.startswith(part[:4]) for part in owner.lower().split("_") if part)


def check_page(text: str, prose: Prose) -> None:
    """Checks a page of Markdown without its code blocks, tables, headings and generated parts."""
    text = re.sub(
        r"<!-- Table: .*?<!-- End of the table\. -->|^```.*?^```|^    .*?$|^\|.*?$|^#.*?$|<!--.*?-->",
        lambda match: "\n" * match[0].count("\n"),
        text,
        flags=re.DOTALL | re.MULTILINE,
    )
    prose.check_words(text, 1)
    prose.check_columns(text, 1)
    prose.check_sentences(text, 1, PAGE_OPENING)


def blank_code(text: str) -> str:
    return CODE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def findings(paths: list[Path]) -> list[Finding]:
    """Returns the findings of these files, in their order."""
    section = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").partition("## Banned in prose\n")[2]
    words = section.partition("```text\n")[2].partition("```")[0].split()
    banned = re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE)
    found = []
    for path in paths:
        name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8", errors="replace")
        prose = Prose(name, banned)
        if path.suffix == ".py":
            check_python(name, text, prose)
        elif path.suffix == ".md":
            check_page(text, prose)
        else:
            prose.check_words(text, 1)
        found += prose.findings
    return found


def files(below: list[Path]) -> Iterator[Path]:
    """Yields the files to check below these paths."""
    for path in sorted(below):
        if path.is_dir():
            if path.name not in SKIPPED_FOLDERS and not path.is_symlink():
                yield from files(list(path.iterdir()))
        elif has_prose(path, path.relative_to(ROOT).as_posix()):
            yield path


def has_prose(path: Path, name: str) -> bool:
    """Returns whether the file is one to check."""
    if path.suffix == ".md" and path.read_text(encoding="utf-8").startswith("<!-- Generated by"):
        return False
    is_plain = path.suffix in PLAIN_SUFFIXES and name.startswith(PLAIN_FOLDERS)
    return not name.startswith(SKIPPED) and (path.suffix in (".py", ".md") or is_plain or name == "Makefile")


def write_baseline(counts: Counter[tuple[str, str]]) -> None:
    """Writes one line a file."""
    written: dict[str, dict[str, int]] = {}
    for path, rule in sorted(counts):
        written.setdefault(path, {})[rule] = counts[path, rule]
    lines = [f"{json.dumps(path)}: {json.dumps(rules)}" for path, rules in written.items()]
    BASELINE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> int:
    """Returns 1 where a file has more findings than the baseline excuses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--update-baseline", action="store_true")
    options = parser.parse_args()
    checked = list(files([path.resolve() for path in options.paths] or [ROOT]))
    found = findings(checked)
    counts: Counter[tuple[str, str]] = Counter((decision.path, decision.rule) for decision in found)
    recorded = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    excused: Counter[tuple[str, str]] = Counter(
        {(path, rule): count for path, rules in recorded.items() for rule, count in rules.items()}
    )
    if options.update_baseline:
        names = {path.relative_to(ROOT).as_posix() for path in checked}
        others = Counter({key: count for key, count in excused.items() if options.paths and key[0] not in names})
        write_baseline((counts & excused) | others)
        return 0
    worse = {} if options.paths else counts - excused
    for decision in found:
        if options.paths or (decision.path, decision.rule) in worse:
            print(f"{decision.path}:{decision.line}: {decision.rule}: {decision.text}")
    if worse:
        print(f"prose: {len(worse)} counts are above {BASELINE.name}; old findings of these files are shown too")
    stale = {} if options.paths else excused - counts
    if stale:
        print("prose: there are fewer findings than recorded; `scripts/check_prose.py --update-baseline` records that")
    return 1 if worse or stale else 0


if __name__ == "__main__":
    sys.exit(main())
