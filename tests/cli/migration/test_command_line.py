"""Command lines of engines as fields of a ModelDeployment."""

import pytest

from fairlead.errors import BadInput
from fairlead_cli.migration.command_line import engine_command, read_flags


@pytest.mark.parametrize(
    ("command", "args", "program", "arguments"),
    [
        (["vllm", "serve", "a/b"], ["--port=1"], "VLLM", ("a/b", "--port=1")),
        (["/opt/venv/bin/vllm", "serve"], ["a/b"], "VLLM", ("a/b",)),
        (["python3", "-m", "vllm.entrypoints.openai.api_server"], ["--model=a"], "VLLM", ("--model=a",)),
        (["python3", "-m", "sglang.launch_server"], ["--tp", "2"], "SGLang", ("--tp", "2")),
        ([], ["--model", "a/b"], None, ("--model", "a/b")),
        (["sh", "-c"], ["vllm serve a/b \\\n  --dtype half"], "VLLM", ("a/b", "--dtype", "half")),
        (
            ["sh", "-c", "vllm serve a --api-key ${KEY} -O $LEVEL"],
            [],
            "VLLM",
            ("a", "--api-key", "$(KEY)", "-O", "$(LEVEL)"),
        ),
        (["bash", "-lc", "--"], ["exec vllm serve a --x '{\"k\": 1}'"], "VLLM", ("a", "--x", '{"k": 1}')),
    ],
)
def test_arguments_of_the_engine_are_found(
    command: list[str], args: list[str], program: str | None, arguments: tuple[str, ...]
) -> None:
    parsed = engine_command(command, args)
    assert (parsed.program, parsed.arguments, parsed.surroundings) == (program, arguments, False)


def test_other_commands_of_a_script_are_reported() -> None:
    parsed = engine_command(["bash", "-c"], ["ulimit -n 65536; echo head && vllm serve a --tp 2 | tee log"])
    assert (parsed.arguments, parsed.surroundings) == (("a", "--tp", "2"), True)


@pytest.mark.parametrize("words", [["tritonserver"], ["sh", "-c", "./start.sh"], ["sh", "-c", "vllm serve 'a"]])
def test_unknown_command_is_refused(words: list[str]) -> None:
    with pytest.raises(BadInput):
        engine_command(words, [])


def test_flags_become_fields_and_others_stay_as_written() -> None:
    words = (
        "a/b --served-model-name x y --tensor_parallel_size=4 --port 8000 --dtype half --enable-lora --max-loras=2 "
        "--seed -1 --revision main"
    )
    read = read_flags(words.split(), "VLLM")
    assert (read.model, read.served_names, read.revision) == ("a/b", ["x", "y"], "main")
    assert read.parallelism == {"tensor": 4}
    assert read.adapters == {"slots": 2}
    assert read.kept == ["--dtype", "half", "--seed", "-1"]
    assert list(read.dropped) == ["--port"]


def test_transfer_and_offload_are_read_from_the_connector() -> None:
    nixl = read_flags(["--kv-transfer-config", '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}'], "VLLM")
    assert (nixl.transfer, nixl.kept) == ("NIXL", [])
    offload = '{"kv_connector": "OffloadingConnector", "kv_connector_extra_config": {"cpu_bytes_to_use": 21474836480}}'
    assert read_flags([f"--kv-transfer-config={offload}"], "VLLM").offload == {"type": "Native", "memory": "20Gi"}
    other = '--kv-transfer-config={"kv_connector": "OtherConnector"}'
    assert read_flags([other], "VLLM").kept == [other]
    assert read_flags(["--kv-transfer-config=broken"], "VLLM").kept == ["--kv-transfer-config=broken"]


@pytest.mark.parametrize("count", ["²", "٣", "9" * 5_000, "", "-1", "1e3"])
def test_a_count_that_is_no_number_stays_as_it_is_written(count: str) -> None:
    read = read_flags(["m", "--tensor-parallel-size", count], "VLLM")
    assert read.parallelism == {}
    assert read.kept == ["--tensor-parallel-size", count]


@pytest.mark.timeout(20)
def test_a_script_of_open_expressions_is_read_in_time_that_grows_with_it() -> None:
    assert engine_command(["sh", "-c", "vllm serve m " + "${ " * 100_000], []).program == "VLLM"
