"""Rules of layout and naming, as functions from the repository to findings.

``docs/contributing/style.md`` states the rules. ``exceptions.json`` counts the findings that are
left, by rule and key. ``test_rules.py`` compares the two.

    repository_rules.py            print all findings
    repository_rules.py --shrink   lower the counts in exceptions.json
"""

import ast
import builtins
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXCEPTIONS = Path(__file__).with_name("exceptions.json")
COMPONENTS = ("operator", "gateway", "autoscaler", "kvstore", "sim", "cli", "downloader")
PACKAGES = ("fairlead", *(f"{name}/fairlead_{name}" for name in COMPONENTS))
SUPPORT = ("e2e", "bench", "scripts", "testing")
TOP_LEVEL = ("fairlead", *COMPONENTS, *SUPPORT, "tests", "docs", "charts", "crds", "examples")

ROOTS = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"out", ".venv", "build", "dist", ".git"}
NOTES = "bench/notes/"
OF_THEIR_TIME = ("CHANGELOG.md", "docs/contributing/style.md")
"""Pages that may name modules that are gone: history, and examples of names."""
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")

FACT = re.compile(r"Raises|None|[Ee]mpty|seconds|bytes|tokens|[Tt]rue if|per |Why")
"""Errors, missing results, units and reasons, which no short body shows."""
PLAIN_DECORATORS = re.compile(
    r"property|staticmethod|classmethod|override|final|(functools\.)?(cache|lru_cache|cached_property)|"
    r"(contextlib\.)?(asynccontextmanager|contextmanager)|abstractmethod|\w+\.setter"
)

MAX_FUNCTION_LINES = 70
MANY_PARAMETERS = 6
MAX_PARAMETERS = 8
MAX_TEST_NAME = 80

Finding = tuple[str, str]
"""The key under which a finding is counted, and its description."""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BLOCKS = (ast.If, ast.Try, ast.With, ast.AsyncWith, ast.For, ast.While, ast.ExceptHandler, ast.Match, ast.match_case)


@dataclass(frozen=True, slots=True)
class Definition:
    """A class or a function: ``name`` is qualified, ``parameters`` is without ``self``."""

    name: str
    is_class: bool
    line: int
    lines: int
    parameters: int
    docstring: str
    is_short: bool
    """Set by `is_short_function`."""

    @property
    def last_name(self) -> str:
        """Returns the name without those of the enclosing definitions."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Source:
    """One Python file, without its tree: 1,400 trees in memory make the garbage collector slow."""

    path: str
    text: str
    docstring: str
    definitions: list[Definition]
    late_constants: list[str]
    """Constants behind the first class or function."""
    imports: list[tuple[str, str]]
    """Module and imported name; the name is empty for a plain import."""

    @property
    def package(self) -> str | None:
        """Returns the import package that ships the file; None for tests, benches and scripts."""
        return next((package for package in PACKAGES if self.path.startswith(f"{package}/")), None)

    @property
    def is_support(self) -> bool:
        """Returns whether the file is a script, a bench, an end-to-end test or test support."""
        return self.path.split("/")[0] in SUPPORT


@cache
def sources() -> list[Source]:
    """Returns all Python files of the repository, parsed."""
    parsed = []
    for folder in (*PACKAGES, *SUPPORT, "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            tree = ast.parse(text)
            source = Source(
                path.relative_to(ROOT).as_posix(), text, ast.get_docstring(tree) or "", [], late_constants_of(tree), []
            )
            _collect(source, tree, "")
            parsed.append(source)
    return parsed


def reviewed() -> list[Source]:
    """Returns all files but the tests."""
    return [source for source in sources() if source.package or source.is_support]


def function_lines() -> Iterator[Finding]:
    """Yields functions that are too long."""
    for source in reviewed():
        for function in source.definitions:
            if not function.is_class and function.lines > MAX_FUNCTION_LINES:
                yield source.path, f"{function.name}: {function.lines} lines, at most {MAX_FUNCTION_LINES}"


def needless_docstrings() -> Iterator[Finding]:
    """Yields short functions with a docstring of one line, unless a public one states a fact."""
    for source in reviewed():
        for function in source.definitions:
            text = function.docstring
            states_fact = not function.last_name.startswith("_") and FACT.search(text)
            if function.is_short and text and "\n" not in text and not states_fact:
                yield source.path, f"{function.name} (line {function.line}): {text}"


def late_constants() -> Iterator[Finding]:
    """Yields modules with two or more constants behind their first class or function."""
    for source in sources():
        if len(source.late_constants) > 1 and not source.path.startswith("tests/"):
            yield "all", f"{source.path}: {', '.join(source.late_constants)}"


def banned_names() -> Iterator[Finding]:
    """Yields modules, folders, classes and functions whose names the glossary bans."""
    banned = banned_words("Banned names")
    folders = set()
    for source in sources():
        *parents, name = source.path.removesuffix(".py").split("/")
        folders |= {"/".join(parents[:depth]) for depth in range(2, len(parents) + 1)}
        for word in banned.intersection(name.split("_")):
            yield source.path, f"module name with {word!r}"
        for definition in source.definitions:
            if definition.last_name.strip("_").lower() in banned:
                yield source.path, f"{definition.name} (line {definition.line})"
    for folder in sorted(folders):
        for word in banned.intersection(folder.rpartition("/")[2].split("_")):
            yield folder, f"folder name with {word!r}"


def duplicate_classes() -> Iterator[Finding]:
    """Yields class names that one component uses more than once."""
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for source in sources():
        for definition in source.definitions:
            if definition.is_class and source.package:
                places[source.package, definition.last_name].append(f"{source.path}:{definition.line}")
    for (package, name), locations in places.items():
        for place in locations[1:]:
            yield f"{package}:{name}", f"{place}, first in {locations[0]}"


def too_many_parameters() -> Iterator[Finding]:
    """Yields functions with more than eight parameters."""
    for source in reviewed():
        for function in source.definitions:
            if function.parameters > MAX_PARAMETERS:
                yield source.path, f"{function.name}: {function.parameters} parameters, at most {MAX_PARAMETERS}"


def many_parameters() -> Iterator[Finding]:
    """Yields functions with more than six parameters, counted for the repository as a whole."""
    for source in reviewed():
        for function in source.definitions:
            if function.parameters > MANY_PARAMETERS:
                yield "all", f"{source.path} {function.name}: {function.parameters} parameters"


def import_circles() -> Iterator[Finding]:
    """Yields circles of modules that import one another; imports for type checking count."""
    graph = _imports()
    for circle in strongly_connected(graph):
        if len(circle) > 1 or circle[0] in graph[circle[0]]:
            yield min(circle), " ↔ ".join(sorted(circle))


def references() -> Iterator[Finding]:
    """Yields names in docstrings, package maps and pages that nothing in the repository has."""
    tails = path_tails()
    for source in reviewed():
        documented = [
            ("module", source.docstring),
            *((definition.name, definition.docstring) for definition in source.definitions),
        ]
        for name, docstring in documented:
            for span in re.findall(r"``([^`\n]+)``", docstring):
                if not _resolves(span, tails):
                    yield source.path, f"``{span}`` (docstring of {name})"
        if source.path.endswith("/__init__.py"):
            for span in SPAN.findall(source.docstring):
                if not _map_resolves(span, source, tails):
                    yield source.path, f"`{span}` (package map)"
    for page in pages():
        for span in _page_spans(page):
            if not page_resolves(span, page, tails):
                yield page, f"`{span}`"


def test_names() -> Iterator[Finding]:
    """Yields tests with names that are too long to read."""
    for source in sources():
        for test in source.definitions:
            name = test.last_name
            if name.startswith("test_") and len(name) > MAX_TEST_NAME:
                yield source.path, f"{name}: {len(name)} characters, at most {MAX_TEST_NAME}"


RULES: dict[str, Callable[[], Iterator[Finding]]] = {
    rule.__name__: rule
    for rule in (
        function_lines,
        needless_docstrings,
        late_constants,
        banned_names,
        duplicate_classes,
        too_many_parameters,
        many_parameters,
        import_circles,
        references,
        test_names,
    )
}


def findings(rule: str) -> dict[str, list[str]]:
    """Returns the findings of one rule by key."""
    by_key: dict[str, list[str]] = defaultdict(list)
    for key, description in RULES[rule]():
        by_key[key].append(description)
    return dict(by_key)


def exceptions() -> dict[str, dict[str, int]]:
    """Returns how many findings are excused, by rule and key."""
    recorded: dict[str, dict[str, int]] = json.loads(EXCEPTIONS.read_text()) if EXCEPTIONS.exists() else {}
    return {rule: recorded.get(rule, {}) for rule in RULES}


@cache
def pages() -> list[str]:
    """Returns the Markdown files of the repository."""
    paths = (path.relative_to(ROOT).as_posix() for path in (*_files(), *(ROOT / ".github").rglob("*.md")))
    return sorted(path for path in paths if path.endswith(".md"))


def banned_words(heading: str) -> frozenset[str]:
    """Returns the words of the code block under a heading of the glossary."""
    section = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").partition(f"## {heading}\n")[2]
    return frozenset(section.partition("```text\n")[2].partition("```")[0].split())


def late_constants_of(tree: ast.Module) -> list[str]:
    """Returns the constants behind the first class or function that use none of the module's own.

    Names of types are no constants.
    """
    own: set[str] = set()
    late = []
    for node in tree.body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            own.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and own and node.value is not None:
            names = [target.id for target in _targets(node) if isinstance(target, ast.Name)]
            if own.intersection(used.id for used in ast.walk(node.value) if isinstance(used, ast.Name)):
                own.update(names)
            else:
                late += [name for name in names if name.lstrip("_").isupper()]
    return late


def _targets(node: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]


def _collect(source: Source, node: ast.AST, prefix: str) -> None:
    """Fills ``definitions`` and ``imports`` from the statements below ``node``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            name, length = prefix + child.name, (child.end_lineno or child.lineno) - child.lineno + 1
            parameters = 0 if isinstance(child, ast.ClassDef) else _count_parameters(child.args)
            docstring = ast.get_docstring(child) or ""
            is_class = isinstance(child, ast.ClassDef)
            is_short = not is_class and is_short_function(child)
            source.definitions.append(Definition(name, is_class, child.lineno, length, parameters, docstring, is_short))
            _collect(source, child, f"{name}.")
        elif isinstance(child, ast.Import):
            source.imports.extend((alias.name, "") for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            source.imports.extend((child.module or "", alias.name) for alias in child.names)
        elif isinstance(child, BLOCKS):
            _collect(source, child, prefix)


def is_short_function(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """Returns whether at most two lines below the docstring do something.

    False with a decorator that may read the docstring.
    """
    first, *rest = function.body
    does_nothing = all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in rest)
    if does_nothing or (rest[-1].end_lineno or 0) - (first.end_lineno or 0) > 2:
        return False
    return all(PLAIN_DECORATORS.fullmatch(ast.unparse(node).partition("(")[0]) for node in function.decorator_list)


def _count_parameters(arguments: ast.arguments) -> int:
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in named)


def _module(path: str) -> str:
    package = next((package for package in PACKAGES if path.startswith(f"{package}/")), None)
    shown = path.removeprefix(f"{package.rpartition('/')[0]}/" if package and "/" in package else "")
    return shown.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _imports() -> dict[str, set[str]]:
    """Returns module → the modules that it imports anywhere in its text."""
    names = _modules()
    by_tail: dict[str, list[str]] = defaultdict(list)
    for name, source in names.items():
        if source.is_support:
            parts = name.split(".")
            for start in range(1, len(parts)):
                by_tail[".".join(parts[start:])].append(name)

    def find(wanted: str, importer: str) -> str | None:
        if wanted in names:
            return wanted
        near = [name for name in by_tail.get(wanted, ()) if name.split(".")[0] == importer.split(".")[0]]
        return max(near, key=lambda name: len(_common(name, importer)), default=None)

    graph: dict[str, set[str]] = {name: set() for name in names}
    for name, source in names.items():
        for module, imported in source.imports:
            target = find(f"{module}.{imported}", name) or find(module, name)
            if target:
                graph[name].add(target)
    return graph


def _common(module: str, other: str) -> list[str]:
    shared = []
    for left, right in zip(module.split("."), other.split("."), strict=False):
        if left != right:
            break
        shared.append(left)
    return shared


def strongly_connected(graph: dict[str, set[str]]) -> list[list[str]]:
    """Source: Tarjan, "Depth-first search and linear graph algorithms", 1972."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            at = stack.index(node)
            components.append(stack[at:])
            del stack[at:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return components


def _files() -> Iterator[Path]:
    for folder in TOP_LEVEL:
        yield from (path for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts)
    yield from (path for path in ROOT.iterdir() if path.is_file())


@cache
def path_tails() -> frozenset[str]:
    """Returns all paths of the repository, from each of their folders on."""
    parts = (path.relative_to(ROOT).parts for path in _files())
    return frozenset("/".join(path[start:]) for path in parts for start in range(len(path)))


@cache
def _known_words() -> frozenset[str]:
    """Returns the capitalized words of a file outside of double backticks, and the builtins."""
    words = set(dir(builtins))
    for source in sources():
        words.update(re.findall(r"\b[A-Z]\w+", re.sub(r"``[^`\n]+``", "", source.text)))
    return frozenset(words)


@cache
def _modules() -> dict[str, Source]:
    return {_module(source.path): source for source in reviewed()}


def _resolves(span: str, tails: frozenset[str]) -> bool:
    if re.fullmatch(r"\w[\w./-]*\.(py|md|ya?ml|toml|sh)", span):
        return span in tails
    if re.fullmatch(r"[\w./-]+", span) and "/" in span and span.split("/")[0] in TOP_LEVEL:
        return span.rstrip("/") in tails
    if re.fullmatch(r"fairlead(_\w+)?(\.\w+)+", span) and span != "fairlead.io":
        return _is_defined(span)
    return not re.fullmatch(r"[A-Z]\w*[a-z]\w*[A-Z]\w*", span) or span in _known_words()


def _map_resolves(span: str, source: Source, tails: frozenset[str]) -> bool:
    """Returns whether a package map names a module below it, or a word of its ``__init__``."""
    name = re.sub(r"/$|\.p(?:y|yx|xd)$", "", span)
    folder = ROOT / source.path.removesuffix("/__init__.py")
    below = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*")]
    if name in below or any(path.endswith(f"/{name}") for path in below):
        return True
    if re.fullmatch(r"[a-z][a-z0-9_]*", name):
        return bool(re.search(rf"\b{name}\b", source.text.replace(f"`{span}`", "")))
    return _resolves(span, tails)


def _page_spans(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"^## Code map\n.*?(?=^## |\Z)", "", text, flags=re.MULTILINE | re.DOTALL)  # has a test of its own
    return SPAN.findall(re.sub(r"^```[^\n]*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def page_resolves(span: str, page: str, tails: frozenset[str]) -> bool:
    """Returns whether a path, module or package that a page names exists.

    Paths begin at the root or at the page's folder; a file's name alone stands for any such file.
    """
    path = span.partition("::")[0].rstrip("/")
    if not re.fullmatch(r"[\w./-]+", path):
        return True
    if "/" not in path or path.split("/")[0] not in ROOTS:
        if page in OF_THEIR_TIME or page.startswith(NOTES):
            return True
        if re.fullmatch(r"fairlead_\w+(\.\w+)+|fairlead(\.\w+){2,}", path) and not path.endswith(".py"):
            return _is_defined(path)
        if not path.endswith(".py") and not re.fullmatch(r"[a-z_]+(/[a-z_]+)+/", span):
            return True
    return (ROOT / path).exists() or (ROOT / page).parent.joinpath(path).exists() or ("/" not in path and path in tails)


def _is_defined(dotted: str) -> bool:
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        module = _modules().get(".".join(parts[:length]))
        if module:
            rest = parts[length:]
            return not rest or bool(re.search(rf"\b{rest[-1]}\b", module.text))
    return any(name.startswith(f"{dotted}.") for name in _modules())


def _shrink() -> None:
    recorded = exceptions()
    written: dict[str, dict[str, int]] = {}
    for rule in RULES:
        counts = {key: len(descriptions) for key, descriptions in findings(rule).items()}
        counts = {key: min(count, recorded[rule].get(key, 0)) for key, count in counts.items()}
        written[rule] = {key: count for key, count in sorted(counts.items()) if count}
    EXCEPTIONS.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    if "--shrink" in sys.argv:
        _shrink()
    else:
        for rule in RULES:
            for key, descriptions in findings(rule).items():
                for description in descriptions:
                    print(f"{rule} {key}: {description}")
