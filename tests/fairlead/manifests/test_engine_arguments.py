"""Notes on arguments of engines that Fairlead sets itself, or that break routing."""

import pytest

from fairlead.api.v1alpha1 import ModelDeploymentSpec
from fairlead.manifests.lint import lint_engine_arguments


def noted(*args: str, engine: str = "VLLM", **fields: object) -> list[str]:
    """Returns the names of the arguments that notes are about, by position."""
    spec = {
        "model": {"uri": "hf://a/b"},
        "engine": {
            "type": engine,
            "args": list(args),
            **({"image": "a/b:1"} if engine in ("Custom", "LlamaCpp", "TRTLLM") else {}),
        },
        "pools": [{"acceleratorClassName": "nvidia-h100", "parallelism": {"tensor": 4}}],
        **fields,
    }
    notes = list(lint_engine_arguments(ModelDeploymentSpec.model_validate(spec, by_alias=True, by_name=False)))
    assert all(note.path[:3] == ("spec", "engine", "args") for note in notes)
    named = [args[int(note.path[-1])] for note in notes]
    assert all(
        name.replace("_", "-").startswith(note.message.partition(":")[0])
        for name, note in zip(named, notes, strict=True)
    )
    return named


@pytest.mark.parametrize(
    "argument",
    [
        "--no-enable-prefix-caching",
        "--no_enable_prefix_caching",
        "--enable-prefix-caching=false",
        "--port=9000",
        "--host=127.0.0.1",
        "--uds=/tmp/engine",
        "--kv-events-config={}",
        "--prefix-caching-hash-algo=builtin",
        "--api-key=abc",
        "--tensor-parallel-size=8",
        "-tp=8",
        "--pipeline-parallel-size=2",
        "--model=other",
        "--ssl-keyfile=/k",
        "--disable-log-stats",
        "--nnodes=2",
    ],
)
def test_arguments_that_break_routing_of_vllm_are_noted(argument: str) -> None:
    assert noted("--max-model-len=4096", argument) == [argument]


@pytest.mark.parametrize(
    "argument",
    [
        "--disable-radix-cache",
        "--tp=8",
        "--tp-size=8",
        "--tensor-parallel-size=2",
        "--port=9000",
        "--api-key=abc",
        "--model-path=/m",
    ],
)
def test_arguments_that_break_routing_of_sglang_are_noted(argument: str) -> None:
    assert noted(argument, engine="SGLang") == [argument]


@pytest.mark.parametrize(
    "argument",
    [
        "--port=9000",
        "--hf-repo=a/b",
        "-m=/m.gguf",
        "--split-mode=row",
        "--no-cache-prompt",
        "--slots",
        "--mmproj=/p.gguf",
    ],
)
def test_arguments_that_break_llama_cpp_or_show_prompts_are_noted(argument: str) -> None:
    assert noted("--ctx-size=8192", "--parallel=4", argument, engine="LlamaCpp") == [argument]


@pytest.mark.parametrize(
    "argument",
    [
        "--port=9000",
        "--tp_size=2",
        "--config=/options.yaml",
        "--grpc",
        "--served_model_name=a",
        "--server_role=CONTEXT",
    ],
)
def test_arguments_that_break_tensorrt_llm_are_noted(argument: str) -> None:
    noted_names = noted("--max_seq_len=8192", "--tp_size=4", argument, engine="TRTLLM")
    assert noted_names == [argument]


def test_a_value_may_be_the_next_argument() -> None:
    assert noted("--port", "9000", "-tp", "4", "--tensor-parallel-size", "8") == ["--port", "--tensor-parallel-size"]


def test_arguments_that_agree_with_the_spec_or_touch_nothing_of_it_are_not_noted() -> None:
    harmless = ("--max-model-len=32768", "--enable-prefix-caching", "--tensor-parallel-size=4", "--enable-lora")
    assert noted(*harmless, "--prefix-caching-hash-algo=sha256", "--kv-transfer-config={}") == []


def test_arguments_that_the_spec_sets_are_noted_only_where_it_does() -> None:
    assert noted("--kv-events-config={}", kvCache={"events": False}) == []
    assert noted("--max-loras=2", adapters={"slots": 8, "maxRank": 64}) == ["--max-loras=2"]
    assert noted("--kv-transfer-config={}", kvCache={"offload": {"type": "Native", "memory": "8Gi"}}) == [
        "--kv-transfer-config={}"
    ]
    model = {"uri": "hf://a/b", "revision": "main"}
    assert noted("--revision=main", "--revision=old", model=model) == ["--revision=old"]


def test_arguments_of_a_pool_are_noted_at_their_place() -> None:
    """Arguments for the whole model are noted there alone."""
    own = [
        "--max-num-seqs=16",
        "--port=9000",
        "--served-model-name=a",
        "--scheduling-policy=priority",
        "--no-such-flag",
    ]
    pools = [{"acceleratorClassName": "cpu"}, {"name": "more", "acceleratorClassName": "cpu", "args": own}]
    spec = {"model": {"uri": "hf://a/b"}, "engine": {"type": "VLLM"}, "pools": pools}
    notes = list(lint_engine_arguments(ModelDeploymentSpec.model_validate(spec, by_alias=True, by_name=False)))
    assert [note.path for note in notes] == [("spec", "pools", 1, "args", place) for place in (1, 2, 3, 4)]
    assert noted("--scheduling-policy=priority", "--max-num-seqs=16") == []
    custom = spec | {"engine": {"type": "Custom", "image": "a/b:1"}}
    assert list(lint_engine_arguments(ModelDeploymentSpec.model_validate(custom, by_alias=True, by_name=False))) == []


def test_arguments_of_a_custom_engine_are_its_own_affair() -> None:
    assert noted("--port=9000", engine="Custom") == []
