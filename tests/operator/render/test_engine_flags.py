"""Every rendered flag exists in the engine version that docs/reference/engines.md names."""

import argparse
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fairlead.api.spec.engine import EngineType
from fairlead.manifests.lint import CONFLICTS_BY_ENGINE
from fairlead_operator.render import CURRENT_VERSION
from fairlead_sim.server import command_line
from fairlead_testing.module_files import load_module
from fairlead_testing.yaml_documents import load_documents

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "operator" / "render" / "golden" / f"v{CURRENT_VERSION}"
KNOWN = json.loads((ROOT / "fairlead" / "manifests" / "engine_flags.json").read_text(encoding="utf-8"))


def script() -> Any:
    return load_module("engine_flags", ROOT / "scripts" / "generators" / "engine_flags.py")


def containers(kind: str) -> list[tuple[str, list[str]]]:
    """(file, arguments) of every engine of one kind in the golden files."""
    arguments = []
    for case, manifest in golden_objects():
        if manifest["metadata"]["labels"]["fairlead.io/engine"] != kind:
            continue
        spec = manifest.get("spec", {})
        group = spec.get("leaderWorkerTemplate", {})
        for template in (spec.get("template"), group.get("leaderTemplate"), group.get("workerTemplate")):
            if template is not None:
                arguments.append((case, template["spec"]["containers"][0]["args"]))
    return arguments


@cache
def golden_objects() -> list[tuple[str, Any]]:
    """Returns every object of the golden files, with the name of its file."""
    paths = sorted(GOLDEN.glob("*.yaml"))
    return [
        (path.stem, document)
        for path in paths
        for document in load_documents(path.read_text(encoding="utf-8"))
        if document
    ]


@pytest.mark.parametrize(("kind", "least"), [("vllm", 16), ("sglang", 16), ("llamacpp", 8), ("trtllm", 7)])
def test_every_flag_exists_in_the_engine(kind: str, least: int) -> None:
    flags, seen = set(KNOWN[kind]["flags"]), set()
    for case, arguments in containers(kind):
        used = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
        assert used <= flags, case
        seen |= used
    assert len(seen) >= least  # the cases cover most of what an adapter writes


def test_every_llama_cpp_argument_that_is_noted_exists() -> None:
    assert set(CONFLICTS_BY_ENGINE[EngineType.LLAMA_CPP]) <= set(KNOWN["llamacpp"]["flags"])


def test_every_tensorrt_llm_argument_that_is_noted_exists() -> None:
    known = {flag.replace("_", "-") for flag in KNOWN["trtllm"]["flags"]}
    assert set(CONFLICTS_BY_ENGINE[EngineType.TRTLLM]) <= known


def test_simulated_engine_parses_its_command_lines() -> None:
    for _, arguments in containers("sim"):
        parser = argparse.ArgumentParser()
        command_line.add_engine_arguments(parser)
        read = command_line.parse_engine_options(
            parser.parse_args([argument.replace("$(POD_IP)", "10.0.0.1") for argument in arguments])
        )
        assert read.port == 8000


def test_flags_are_read_from_help_text() -> None:
    text = """usage: vllm serve [model_tag] [options]

options:
  --headless            Run without --port or so. (default: False)
  --nnodes NNODES, -n NNODES
                        num of nodes, see --not-a-flag
  --enable-lora, --no-enable-lora
  -h, --help            show this help message and exit
"""
    assert script().flags_of_help(text) == ["--enable-lora", "--headless", "--help", "--nnodes", "--no-enable-lora"]


def test_flags_are_read_from_the_sources_of_llama_cpp() -> None:
    source = """
    add_opt(common_arg(
        {"-a", "--alias"}, "STRING", "help {a}", [](common_params & params) {}
    ).set_examples({LLAMA_EXAMPLE_SERVER}));
    add_opt(common_arg({"--color"}, "help").set_examples({LLAMA_EXAMPLE_COMPLETION}));
    add_opt(common_arg({"--slots"}, {"--no-slots"}, "help", [](common_params & params, bool value) {}));
"""
    assert sorted(script().llama_cpp_declared(source)) == ["--alias", "--no-slots", "--slots", "-a"]


def test_flags_are_read_from_options_of_click() -> None:
    import ast

    source = """
@click.command("serve")
@click.argument("model", type=str)
@stability_option("--tensor_parallel_size", "--tp_size", type=int, help="--not_a_flag")
@stability_option("--telemetry/--no-telemetry", default=True)
@click.option("--config", "--extra_llm_api_options", "extra_llm_api_options")
def serve(model): ...

@click.option("--config_file")
def disaggregated(config_file): ...
"""
    flags = sorted(script().click_options(ast.parse(source), "serve"))
    assert flags == [
        "--config",
        "--extra_llm_api_options",
        "--no-telemetry",
        "--telemetry",
        "--tensor_parallel_size",
        "--tp_size",
    ]


def test_flags_are_read_from_declarations() -> None:
    import ast

    source = """
class Fields:
    tp_size: A[int, Arg(help="x", aliases=["--tensor-parallel-size"])] = 1
    plain_text: A[str, "help"] = ""
    hidden: A[bool, Arg(help="x", no_cli=True)] = False
    renamed: A[str, Arg(cli_name="--other-name")] = ""
    both: A[bool, Arg(action=argparse.BooleanOptionalAction)] = True
    not_declared: int = 3
def add(parser):
    parser.add_argument("--config", type=str)
"""
    flags = sorted(script().declared(ast.parse(source)))
    assert flags == [
        "--both",
        "--config",
        "--no-both",
        "--other-name",
        "--plain-text",
        "--tensor-parallel-size",
        "--tp-size",
    ]
