"""The documentation against the code: links work, commands parse, and names match on both sides."""

import ast
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import ModuleType

import pytest
from cyclopts import CycloptsError, MissingArgumentError

from fairlead.settings import TOOL_VARIABLES, settings_table
from fairlead_bench.registry import PARTS
from fairlead_cli.app import NOUNS, VERBS, build_app
from fairlead_downloader import __main__ as downloader
from fairlead_gateway.routing import PRESETS
from fairlead_gateway.routing.prefill_placement import LOCAL_RULES, REMOTE_RULES
from fairlead_kvstore.indexer import cli as indexer
from fairlead_sim.autoscaling import __main__ as scenarios

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
LISTED = subprocess.run(["git", "ls-files", "-z", "*.md"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
PAGES = [ROOT / name for name in LISTED if name and (ROOT / name).exists()] or sorted(
    path for path in ROOT.rglob("*.md") if not {".venv", "out"} & set(path.parts)
)
CHANGELOG = ROOT / "CHANGELOG.md"
SOURCES = [
    path
    for folder in ("fairlead", "gateway", "kvstore", "sim", "cli", "downloader")
    for path in (ROOT / folder).rglob("*.py")
]
APP = build_app()
HERE: dict[str, ModuleType] = {
    "fairlead_downloader": downloader,
    "fairlead_kvstore": indexer,
    "fairlead_sim.autoscaling": scenarios,
}
"""Programs whose help needs no process of its own."""
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"!?\[[^]]*\]\(([^)\s]+)\)")
FAIRLEAD = re.compile(r"(?:\.venv/bin/|kubectl )?fairlead(?: |$)")
MODULE = re.compile(r"(?:\.venv/bin/)?(?:python3? -m (fairlead_\w+(?:\.\w+)?)|(fairlead-gateway))\b(.*)")
FOREIGN = {
    "--require-hashes",
    "--universal",
    "--generate-hashes",
    "--no-emit-index-url",
    "--only-binary",
    "--import-mode",
    "--strict",
    "--index-url",
    "--type",
    "--subresource",
    "--field-manager",
    "--replicas",
    "--as",
    "--exclude",
    "--api-versions",
    "--force-conflicts",
    "--reset-then-reuse-values",
    "--reuse-values",
    "--model_id",
    "--plain-http",
    "--from-plain-http",
    "--to-plain-http",
}
"""Options of other people's programs that the pages speak of."""


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def snippets(path: Path) -> list[str]:
    """Returns the code of a page: the lines of its blocks, continued ones joined, and its spans."""
    text = text_of(path)
    lines = [line for block in FENCE.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    return [*lines, *SPAN.findall(FENCE.sub("", text))]


def slug(heading: str) -> str:
    """The anchor of a heading, as repository hosts make it."""
    plain = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


@cache
def headings_of(page: Path) -> frozenset[str]:
    """Returns the anchors of a page."""
    return frozenset(map(slug, re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)))


def broken_links(page: Path) -> Iterator[str]:
    for target in LINK.findall(FENCE.sub("", text_of(page))):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        place, _, anchor = target.partition("#")
        linked = (page.parent / place).resolve() if place else page
        if not linked.exists():
            yield f"{named(page)}: {target}"
        elif anchor and linked.suffix == ".md" and slug(anchor) not in headings_of(linked):
            yield f"{named(page)}: {target}: no such heading"


def test_every_link_leads_somewhere() -> None:
    assert [broken for page in PAGES for broken in broken_links(page)] == []


# --- commands -----------------------------------------------------------------------------------------------------------


def words_of(snippet: str) -> Iterator[list[str]]:
    """Yields the ``fairlead`` commands of a line as words.

    Placeholders are filled in; comments, pipes and redirections are left out.
    """
    line = re.sub(r"\s#\s.*", "", snippet.removeprefix("$ ").strip())
    for part in re.split(r"\|\||&&|;|\|", line):
        if not FAIRLEAD.match(part.strip()):
            continue
        words = shlex.split(re.sub(r"[<>] ?\S+", "", part))
        words = words[2:] if words[0] == "kubectl" else words[1:]
        kept = [word for word in words if "…" not in word and "..." not in word and not word.startswith("[")]
        yield ["1" if re.fullmatch(r"[A-Z]+", word) else word for word in kept]


def commands(page: Path) -> list[list[str]]:
    lines = [words for snippet in snippets(page) for words in words_of(snippet)]
    return [words for words in lines if words and words[0] not in ("1", "--version", "--help")]


@cache
def options_of(verb: str) -> frozenset[str]:
    command = APP
    for word in verb.split():
        command = command[word]
    arguments = command.assemble_argument_collection(default_parameter=APP.default_parameter)
    return frozenset(
        name
        for argument in arguments
        if argument.show
        for name in argument.names
        if name.startswith("-") and "--empty-" not in name
    )


def test_there_are_commands_to_check() -> None:
    assert len([words for page in PAGES for words in commands(page)]) > 30


@cache
def problem_of(words: tuple[str, ...]) -> str | None:
    """Returns what is wrong with a command; None if it parses."""
    verb = " ".join(words[:2]) if words[0] in NOUNS else words[0]
    if verb in NOUNS:
        return None
    if verb not in VERBS:
        return "no such verb"
    flags = {word.partition("=")[0] for word in words if word.startswith("-") and word != "-"}
    if unknown := flags - options_of(verb) - {"--help"}:
        return f"no such options: {unknown}"
    try:
        APP.parse_args(words, exit_on_error=False, print_error=False)
    except MissingArgumentError as error:
        return None if " ".join(words) == verb else str(error)  # a page may name a command without its arguments
    except CycloptsError as error:
        return str(error)
    return None


def test_every_command_that_is_shown_parses() -> None:
    shown = [(page, words) for page in PAGES for words in commands(page)]
    problems = [(named(page), " ".join(words), problem_of(tuple(words))) for page, words in shown]
    assert [problem for problem in problems if problem[2] is not None] == []


@cache
def help_of(module: str, *verb: str) -> str:
    if module == "fairlead_bench" and verb:
        return printed_help(import_module(PARTS[verb[0]].module).main)
    if module in HERE:
        return printed_help(HERE[module].main)
    command = [sys.executable, "-m", module, *verb, "--help"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT).stdout


def printed_help(main: Callable[[list[str]], int]) -> str:
    """Returns what a program of this process prints for `--help`."""
    with redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
        main(["--help"])
    return printed.getvalue()


def unknown_options(page: Path) -> Iterator[str]:
    for snippet in snippets(page):
        if call := MODULE.search(re.sub(r"\s#\s.*", "", snippet)):
            module = call[1] or "fairlead_gateway"
            verb = re.findall(r"^ ([a-z][a-z-]*)", call[3]) if module in ("fairlead_bench", "fairlead_sim") else ()
            for option in re.findall(r"(?<!\S)--[a-z-]+", call[3]):
                if not re.search(rf"{option}\b", help_of(module, *verb)):
                    yield f"{named(page)}: {module} {option}"


def test_every_option_of_a_process_that_is_shown_exists() -> None:
    assert [unknown for page in PAGES for unknown in unknown_options(page)] == []


def every_option() -> set[str]:
    modules = [
        ("fairlead_gateway",),
        ("fairlead_autoscaler",),
        ("fairlead_sim", "engine"),
        ("fairlead_sim.seams",),
    ]
    known = {option for module, *verb in modules for option in re.findall(r"--[a-z-]+", help_of(module, *verb))}
    for script in chain(
        *((ROOT / folder).rglob("*.py") for folder in ("bench", "e2e/cluster", "scripts", "tests/repository"))
    ):
        known.update(re.findall(r'"(--[a-z-]+)"', text_of(script)))
        for call in re.findall(r"parse_options\((.+?)\)\n", text_of(script), re.DOTALL):
            known.update(f"--{name.replace('_', '-')}" for name in re.findall(r"\b([a-z_]+)=", call))
    for engine in json.loads(text_of(ROOT / "fairlead" / "manifests" / "engine_flags.json")).values():
        known.update(engine["flags"])
    return known.union(*map(options_of, VERBS), {"--version", "--help"})


def test_every_option_that_is_named_anywhere_exists() -> None:
    known = every_option() | FOREIGN
    unknown = [
        f"{named(page)}: {option}"
        for page in PAGES
        for span in SPAN.findall(FENCE.sub("", text_of(page)))
        for option in re.findall(r"(?<!\S)--[a-z][a-z_-]+", span)
        if option not in known
        and not span.startswith(("vllm ", "git ", "curl ", "helm ", "kubectl get ", "kubectl logs ", "kubectl apply "))
    ]
    assert unknown == []


def test_every_option_is_documented() -> None:
    for verb in VERBS:
        section = text_of(REFERENCE / "cli" / f"{verb.replace(' ', '-')}.md")
        assert {name for name in options_of(verb) if f"`{name}`" not in section} == set()
    for module, where in (("fairlead_gateway", "seams.md"), ("fairlead_autoscaler", "autoscaler.md")):
        shown = text_of(REFERENCE / where)
        flags = set(re.findall(r"^  (--[a-z-]+)", help_of(module), re.MULTILINE))
        assert {flag for flag in flags if f"`{flag}" not in shown} == set()


def test_every_target_of_make_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    targets |= {f"bench-{name}" for name in PARTS}
    for page in PAGES:
        for snippet in snippets(page):
            if (call := re.match(r"(?:\$ )?make ([a-z0-9-]+)", snippet)) and call[1] not in targets:
                pytest.fail(f"{named(page)}: make {call[1]}")


def test_every_verb_that_a_message_or_a_comment_names_exists() -> None:
    named_verbs = {verb for path in SOURCES for verb in re.findall(r"`fairlead ([a-z]+(?:-[a-z]+)*)", text_of(path))}
    assert named_verbs - {verb.partition(" ")[0] for verb in VERBS} == set()


# --- names --------------------------------------------------------------------------------------------------------------


def test_every_variable_that_is_named_is_a_setting_and_every_setting_is_named() -> None:
    known = {row.variable for row in settings_table()}.union(TOOL_VARIABLES)
    shown = {
        name
        for page in PAGES
        if page != CHANGELOG
        for name in re.findall(r"FAIRLEAD_[A-Z0-9_]*[A-Z0-9]", text_of(page))
    }
    assert shown == known
    changes = text_of(CHANGELOG)
    removed = set(
        re.findall(r"FAIRLEAD_[A-Z0-9_]*[A-Z0-9]", changes.partition("### Removed")[2].partition("\n### ")[0])
    )
    assert set(re.findall(r"FAIRLEAD_[A-Z0-9_]*[A-Z0-9]", changes)) <= known | removed
    read = [*SOURCES, ROOT / "Makefile", *(ROOT / "e2e").glob("*.py"), *(ROOT / "scripts").glob("*")]
    read += (ROOT / "charts").rglob("*")
    used = {
        name for path in read if path.is_file() for name in re.findall(r"FAIRLEAD_[A-Z0-9_]*[A-Z0-9]", text_of(path))
    }
    of_service_links = {"FAIRLEAD_GATEWAY_PORT"}
    assert used - known <= of_service_links


def test_every_metric_that_another_page_names_is_on_the_page_of_metrics() -> None:
    metrics = text_of(REFERENCE / "metrics.md")
    names = {name for page in PAGES for name in re.findall(r"fairlead_gateway_\w+_\w+", text_of(page))}
    modules = {path.stem for path in SOURCES}
    assert {
        name for name in names if f"`{name.removesuffix('_bucket')}`" not in metrics and name not in modules
    } == set()


def column(page: str, heading: str) -> set[str]:
    """The code spans in the first column of the first table below a heading."""
    section = text_of(REFERENCE / page).partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \|", section, re.MULTILINE)
    return set(chain.from_iterable(SPAN.findall(row) for row in rows))


@cache
def nodes(folder: str) -> list[ast.AST]:
    paths = sorted((ROOT / folder).rglob("*.py"))
    return [node for path in paths if "management" not in path.parts for node in ast.walk(ast.parse(text_of(path)))]


def constants(node: ast.expr | None) -> list[str]:
    """The texts that an expression can be, as far as they stand there."""
    if isinstance(node, ast.IfExp):
        return constants(node.body) + constants(node.orelse)
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


BY_PRESET = ("scored_decision", "_decide_by_values", "_decide_by_match", "_decide_by_inflight")
"""Functions by which presets build their decision; the rule is the third argument."""


def first_texts(*functions: str, place: int = 0) -> set[str]:
    """The texts given as one argument to any call of these functions in the gateway."""
    texts: set[str] = set()
    for node in nodes("gateway/fairlead_gateway"):
        if isinstance(node, ast.Call) and len(node.args) > place:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            texts.update(constants(node.args[place]) if name in functions else ())
    return texts


def test_every_rule_is_documented_and_every_documented_rule_exists() -> None:
    returned = {
        text
        for node in nodes("gateway/fairlead_gateway/routing")
        if isinstance(node, ast.FunctionDef) and node.name == "_rule"
        for line in ast.walk(node)
        if isinstance(line, ast.Return)
        for text in constants(line.value)
    }
    rules = returned | first_texts("Decision", place=1) | first_texts(*BY_PRESET, place=2) | {"retry-N"}
    assert column("errors.md", "Rules") == rules - set(PRESETS)
    explained = set(SPAN.findall(text_of(ROOT / "docs" / "concepts" / "routing.md")))
    assert rules - explained - {"none"} == set()


def test_rules_of_prefill_placement_are_those_of_the_reference() -> None:
    assert column("prefill-decode.md", "Who computes a prompt") == LOCAL_RULES | REMOTE_RULES


def test_every_preset_is_explained_and_its_decisions_carry_its_name() -> None:
    table = text_of(ROOT / "docs" / "concepts" / "routing.md").partition("\n## ")[0]
    assert re.findall(r"^\| `(.*?)`", table, re.MULTILINE) == list(PRESETS)
    assert first_texts(*BY_PRESET, place=2) | {"dual-hash"} == set(PRESETS)


def test_every_error_code_is_documented_and_every_documented_code_exists() -> None:
    codes = first_texts("error_body", place=3)
    for node in nodes("gateway/fairlead_gateway"):
        if isinstance(node, ast.Call):
            codes.update(text for word in node.keywords if word.arg == "code" for text in constants(word.value))
        if isinstance(node, ast.ClassDef):
            for line in node.body:
                if isinstance(line, ast.Assign) and getattr(line.targets[0], "id", "") == "code":
                    codes.update(constants(line.value))
    assert column("errors.md", "Errors") == codes


def test_engine_faults_and_stream_end_codes_are_documented() -> None:
    from fairlead_gateway.errors import GatewayDraining
    from fairlead_gateway.proxy.relay import _STREAM_ERROR_TEXTS

    faults = {text for text in first_texts("UpstreamError", "AttemptFailure") if re.fullmatch(r"[a-z-]+", text)}
    assert faults - column("errors.md", "Faults of engines") == set()
    ends = {f"stream_{end.replace('-', '_')}" for end in _STREAM_ERROR_TEXTS}
    assert column("errors.md", "Errors within a stream") == ends | {GatewayDraining.code}


def test_every_path_of_the_management_port_is_documented() -> None:
    management = ROOT / "gateway" / "fairlead_gateway" / "supervisor" / "management"
    modules = [management / "api.py", *management.parent.glob("*/*api.py")]
    described = [path for file in modules for path in re.findall(r'@app\.get\(\s*"([^"]+)"', text_of(file))]
    plain = re.findall(r'"(/[^"]*)": self\.', text_of(management / "probes.py"))
    assert plain
    served = {path.replace(":path}", "}") for path in (*described, *plain)}
    text = text_of(REFERENCE / "management.md")
    assert served == set(re.findall(r"^\| `(/[^`]*)` \|", text, re.MULTILINE)) - {"/openapi.json"}


def test_every_status_of_the_gateways_errors_is_the_one_that_is_documented() -> None:
    from fairlead_gateway import errors

    text = text_of(REFERENCE / "errors.md")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", text, re.MULTILINE)
    engines_own = set(re.findall(r"^\| `(\w+)` \| the engine's \|", text, re.MULTILINE))
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.GatewayError)]
    documented = {code: int(status) for code, status in rows}
    assert {kind.code: kind.status for kind in kinds if kind.code not in engines_own}.items() <= documented.items()
