"""Command line switches of the supported engines, taken from the engines themselves once a release.

``python scripts/generators/engine_flags.py --vllm BIN/vllm --sglang sglang-….whl --llama-cpp
llama_cpp_python-….tar.gz --tensorrt-llm COMMIT:serve.py`` writes ``engine_flags.json``. vLLM's are
from ``vllm serve --help=all``, SGLang's from its wheel, and llama.cpp's from the sources in the
package of its Python binding. TensorRT-LLM's are from the source of its command ``serve`` at a
commit, since no package index has its package.

Only vLLM is run. An engine that is not given keeps its entry. Tests hold every
generated command line to that file, and ``docs/reference/engines.md`` shows it.

Names of parsers come from the tables of the engines' sources. Tests hold the catalogue of models to
them.
"""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "fairlead" / "manifests" / "engine_flags.json"
_HELP_SECONDS = 300
_VLLM_PARSERS = {
    "tool_parsers": ("tool_parsers/__init__.py", "_TOOL_PARSERS_TO_REGISTER"),
    "reasoning_parsers": ("reasoning/__init__.py", "_REASONING_PARSERS_TO_REGISTER"),
}
_SGLANG_PARSERS = {
    "tool_parsers": ("sglang/srt/function_call/function_call_parser.py", "ToolCallParserEnum"),
    "reasoning_parsers": ("sglang/srt/parser/reasoning_parser.py", "DetectorMap"),
}
"""List of names → the file and the dictionary whose keys they are."""
_LLAMA_CPP_FILE = "/vendor/llama.cpp/common/arg.cpp"
_LLAMA_CPP_NAMES = re.compile(r'\{\s*((?:"-[-\w]+",?\s*)+)\}')
_SGLANG_FILES = re.compile(r"sglang/srt/(server_args|arg_groups/fields/\w+)\.py")


FlagReader = Callable[[str], tuple[str, list[str]]]
ParserReader = Callable[[str], dict[str, list[str]]]


def known() -> dict[str, dict[str, Any]]:
    """Returns the stored entries: ``{"vllm": {"version": …, "flags": […], "tool_parsers": […],
    "reasoning_parsers": […]}, "sglang": …}``.
    """
    entries: dict[str, dict[str, Any]] = json.loads(DATA.read_text(encoding="utf-8"))
    return entries


def vllm_flags(binary: str) -> tuple[str, list[str]]:
    """Returns (version, flags) of an installed vLLM; takes some 10 s of CPU."""
    env = {**os.environ, "COLUMNS": "200", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    python = str(Path(binary).with_name("python"))
    version_query = "import importlib.metadata as m; print(m.version('vllm'))"
    version = subprocess.run(
        [python, "-c", version_query], capture_output=True, text=True, check=True, timeout=_HELP_SECONDS
    )
    help_output = subprocess.run(
        [binary, "serve", "--help=all"], capture_output=True, text=True, check=True, timeout=_HELP_SECONDS, env=env
    )
    return version.stdout.strip().partition("+")[0], flags_of_help(help_output.stdout)


def flags_of_help(text: str) -> list[str]:
    """Returns the switches of an argparse help text: lines that begin, two columns in, with one."""
    flags: set[str] = set()
    for line in text.splitlines():
        if re.match(r"  -", line):
            head = re.split(r"\s{3,}", line.strip())[0]
            flags.update(re.findall(r"(?<![\w-])--[A-Za-z0-9][\w.-]*", head))
    return sorted(flags)


def sglang_flags(wheel: str) -> tuple[str, list[str]]:
    """Returns (version, flags) of an SGLang wheel."""
    version = Path(wheel).name.split("-")[1]
    flags: set[str] = set()
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if _SGLANG_FILES.fullmatch(name):
                flags.update(declared(ast.parse(archive.read(name))))
    return version, sorted(flags)


def llama_cpp_flags(package: str) -> tuple[str, list[str]]:
    """Returns (version, flags) of the llama.cpp in a source distribution of llama-cpp-python."""
    version = Path(package).name.removesuffix(".tar.gz").rpartition("-")[2]
    with tarfile.open(package) as archive:
        member = next(member for member in archive if member.name.endswith(_LLAMA_CPP_FILE))
        source = archive.extractfile(member)
        assert source is not None
        text = source.read().decode()
    return f"of llama-cpp-python {version}", sorted(llama_cpp_declared(text))


def llama_cpp_declared(text: str) -> Iterator[str]:
    """Yields the server's switches of ``common_arg({"-a", "--alias"}, …).set_examples({…})``, also
    the short ones. All programs have those without examples.
    """
    for option in text.split("add_opt(common_arg(")[1:]:
        programs = re.search(r"\.set_examples\(\{([^}]*)\}\)", option)
        if programs is None or re.search(r"LLAMA_EXAMPLE_(COMMON|SERVER)\b", programs[1]):
            for names in _LLAMA_CPP_NAMES.findall(option)[:2]:
                yield from re.findall(r'"(-[-\w]+)"', names)


def tensorrt_llm_flags(source: str) -> tuple[str, list[str]]:
    commit, _, path = source.partition(":")
    return f"commit {commit}", sorted(click_options(ast.parse(Path(path).read_text(encoding="utf-8")), "serve"))


def click_options(tree: ast.Module, command: str) -> Iterator[str]:
    """Yields the switches of the decorators ``@…option("--x", "--y/--no-y", …)`` of a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == command:
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call):
                    yield from (flag for text in _texts(decorator.args) for flag in text.split("/"))


def vllm_parsers(binary: str) -> dict[str, list[str]]:
    """Returns the names of the parsers of an installed vLLM."""
    (package,) = Path(binary).parents[1].glob("lib/python*/site-packages/vllm")
    return {
        name: keys_of(ast.parse((package / file).read_text(encoding="utf-8")), table)
        for name, (file, table) in _VLLM_PARSERS.items()
    }


def sglang_parsers(wheel: str) -> dict[str, list[str]]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: keys_of(ast.parse(archive.read(file)), table) for name, (file, table) in _SGLANG_PARSERS.items()}


def keys_of(tree: ast.Module, table: str) -> list[str]:
    """Returns the keys of the dictionary that a module or a class of it assigns to ``table``."""
    for node in ast.walk(tree):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        is_table = any(isinstance(target, ast.Name) and target.id == table for target in targets)
        if is_table and isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            keys = [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
            return sorted(key for key in keys if isinstance(key, str))
    raise ValueError(f"no dictionary is called {table}")


def declared(tree: ast.Module) -> Iterator[str]:
    """Yields the switches of ``parser.add_argument("--x")`` and of fields ``x: A[type, "help" |
    Arg(…)]``.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            yield from _texts(node.args)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield from _of_field(node.target.id, node.annotation)


def _of_field(name: str, annotation: ast.expr) -> Iterator[str]:
    if not (
        isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name) and annotation.value.id == "A"
    ):
        return
    parts = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    keywords: dict[str, ast.expr] = {}
    for part in parts[1:]:
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id == "Arg":
            keywords = {keyword.arg: keyword.value for keyword in part.keywords if keyword.arg is not None}
    if isinstance(no_cli := keywords.get("no_cli"), ast.Constant) and no_cli.value is True:
        return
    flag = next(_texts([keywords["cli_name"]]), "") if "cli_name" in keywords else "--" + name.replace("_", "-")
    yield flag
    if "aliases" in keywords and isinstance(keywords["aliases"], ast.List):
        yield from _texts(keywords["aliases"].elts)
    if "action" in keywords and "BooleanOptionalAction" in ast.dump(keywords["action"]):
        yield "--no-" + flag.removeprefix("--")


def _texts(nodes: list[ast.expr]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("--"):
            yield node.value


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 when the file was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vllm", metavar="PATH", help="an installed vllm command")
    parser.add_argument(
        "--sglang", metavar="WHEEL", help="a wheel of sglang, as `pip download sglang --no-deps` gets it"
    )
    parser.add_argument(
        "--llama-cpp", metavar="PACKAGE", help="a source distribution of llama-cpp-python, as `pip download` gets it"
    )
    parser.add_argument("--tensorrt-llm", metavar="COMMIT:PATH", help="a commit of TensorRT-LLM and its serve.py")
    given = parser.parse_args(arguments)
    entries = known() if DATA.exists() else {}
    readers: dict[str, tuple[str | None, FlagReader, ParserReader]] = {
        "vllm": (given.vllm, vllm_flags, vllm_parsers),
        "sglang": (given.sglang, sglang_flags, sglang_parsers),
        "llamacpp": (given.llama_cpp, llama_cpp_flags, lambda path: {}),
        "trtllm": (given.tensorrt_llm, tensorrt_llm_flags, lambda path: {}),
    }
    for engine, (path, read_flags, read_parsers) in readers.items():
        if path is not None:
            version, flags = read_flags(path)
            entries[engine] = {"version": version, "flags": flags, **read_parsers(path)}
            print(f"{engine} {version}: {len(flags)} switches")
    DATA.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
