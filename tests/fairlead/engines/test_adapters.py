"""Engine adapters: command lines, and the few numbers that they read from a long metrics page."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead.engine_profile import EngineProfile, builtin_profile, builtin_profiles
from fairlead.engines.adapter_protocol import LocalEngineCommand, LocalEngineReplica
from fairlead.engines.registry import engine_adapter, engine_kinds
from fairlead.engines.sim import DEFAULT_CONTEXT_TOKENS, profile_argument, split_args
from fairlead.errors import BadInput
from fairlead.fleet.signals import EngineSignals
from fairlead_sim.server.command_line import add_engine_arguments, parse_engine_options

PAGE = (Path(__file__).parent / "data" / "vllm-metrics.txt").read_bytes()
RECORDED_METRICS = Path(__file__).parents[2] / "recordings" / "vllm" / "metrics"
REPLICA = LocalEngineReplica("qwen", "hf://Qwen/Qwen3-8B", builtin_profile("910b4"), env={"A": "b"})


def flag_value(launch: LocalEngineCommand, name: str) -> str:
    return launch.command[launch.command.index(name) + 1]


def test_every_kind_has_an_adapter_and_unknown_kinds_list_them() -> None:
    assert [engine_adapter(kind).kind for kind in engine_kinds()] == ["vllm", "sglang", "llamacpp", "trtllm", "sim"]
    with pytest.raises(BadInput, match="known: vllm, sglang, llamacpp, trtllm, sim"):
        engine_adapter("tgi")


def test_sglang_signals_are_parsed() -> None:
    page = b"""sglang:num_running_reqs{dp_rank="0",model_name="a",tp_rank="0"} 3.0
sglang:num_running_reqs{dp_rank="1",model_name="a",tp_rank="0"} 1.0
sglang:num_queue_reqs{dp_rank="0",model_name="a",tp_rank="0"} 2.0
sglang:token_usage{dp_rank="0",model_name="a",tp_rank="0"} 0.5
sglang:token_usage{dp_rank="1",model_name="a",tp_rank="0"} 0.1
sglang:prompt_tokens_total{is_streaming="true",model_name="a"} 900.0
sglang:prompt_tokens_total{is_streaming="false",model_name="a"} 100.0
sglang:prompt_tokens_histogram_sum{model_name="a"} 5.0
sglang:cached_tokens_total{cache_source="device",model_name="a"} 300.0
sglang:cached_tokens_total{cache_source="host",model_name="a"} 50.0
sglang:generation_tokens_total{is_streaming="true",model_name="a"} 70.0
"""
    signals = engine_adapter("sglang").parse_signals(page)
    assert signals == EngineSignals(
        running=4.0,
        waiting=2.0,
        kv_usage=0.3,
        prompt_tokens_total=1000.0,
        generation_tokens_total=70.0,
        prefix_queries_total=1000.0,
        prefix_hits_total=350.0,
        preemptions_total=None,
        sleeping=None,
    )
    second = engine_adapter("sglang").parse_signals(page, 1)
    assert (second.running, second.waiting, second.kv_usage, second.prompt_tokens_total) == (1.0, None, 0.1, None)


def test_sglang_tokens_are_those_of_steps_once_a_release_counts_them() -> None:
    """The totals of an SGLang 0.5.23 stand still until a request ends."""
    page = b"""sglang:prompt_tokens_total{is_streaming="true",model_name="a"} 900.0
sglang:generation_tokens_total{is_streaming="true",model_name="a"} 70.0
sglang:realtime_tokens_total{dp_rank="0",mode="prefill_compute",model_name="a"} 500.0
sglang:realtime_tokens_total{dp_rank="0",mode="prefill_cache",model_name="a"} 450.0
sglang:realtime_tokens_total{dp_rank="0",mode="decode",model_name="a"} 80.0
sglang:realtime_tokens_total{dp_rank="1",mode="decode",model_name="a"} 5.0
"""
    adapter = engine_adapter("sglang")
    signals = adapter.parse_signals(page)
    assert (signals.prompt_tokens_total, signals.generation_tokens_total) == (950.0, 85.0)
    assert signals.prefix_queries_total == 900.0
    ranks = adapter.parse_rank_signals(page, (0, 1, 2))
    assert {rank: found.generation_tokens_total for rank, found in ranks.items()} == {0: 80.0, 1: 5.0, 2: None}
    assert ranks[1] == adapter.parse_signals(page, 1)


def test_llama_cpp_signals_count_cached_prompt_tokens_as_other_engines_do() -> None:
    page = b"""# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed, excluding cached tokens
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 700
llamacpp:prompt_tokens_cached_total 300
llamacpp:tokens_predicted_total 70
llamacpp:requests_processing 3
llamacpp:requests_deferred 2
"""
    stats = engine_adapter("llamacpp").parse_signals(page)
    assert (stats.running, stats.waiting, stats.kv_usage) == (3.0, 2.0, None)
    assert (stats.prompt_tokens_total, stats.prefix_queries_total, stats.prefix_hits_total) == (1000.0, 1000.0, 300.0)
    assert stats.generation_tokens_total == 70.0
    assert engine_adapter("llamacpp").parse_rank_signals(page, (0,)) == {0: stats}
    earlier = engine_adapter("llamacpp").parse_signals(page.replace(b"llamacpp:prompt_tokens_cached_total 300\n", b""))
    assert (earlier.prompt_tokens_total, earlier.prefix_queries_total) == (700.0, None)


def test_tensorrt_llm_signals_are_counters_alone() -> None:
    """Its gauges keep the counts of the last iteration while the engine is idle."""
    page = b"""# TYPE trtllm_num_requests_running gauge
trtllm_num_requests_running{engine_type="pytorch",model_name="qwen"} 3.0
trtllm_num_requests_waiting{engine_type="pytorch",model_name="qwen"} 2.0
trtllm_kv_cache_utilization{engine_type="pytorch",model_name="qwen"} 0.4
trtllm_prompt_tokens_total{engine_type="pytorch",model_name="qwen"} 1000.0
trtllm_generation_tokens_total{engine_type="pytorch",model_name="qwen"} 70.0
trtllm_prompt_cached_tokens_total{engine_type="pytorch",model_name="qwen"} 300.0
trtllm_prompt_cached_tokens_per_request_sum{engine_type="pytorch",model_name="qwen"} 5.0
"""
    adapter = engine_adapter("trtllm")
    assert adapter.metrics_path == "/prometheus/metrics"
    signals = adapter.parse_signals(page)
    assert signals == EngineSignals(
        prompt_tokens_total=1000.0,
        generation_tokens_total=70.0,
        prefix_queries_total=1000.0,
        prefix_hits_total=300.0,
    )
    assert adapter.parse_rank_signals(page, (0,)) == {0: signals}
    assert adapter.parse_signals(b"") == EngineSignals()


@pytest.mark.parametrize(
    ("kind", "name"), [("sglang", "sglang"), ("llamacpp", "llama.cpp"), ("trtllm", "TensorRT-LLM")]
)
def test_local_mode_starts_no_other_real_engine(kind: str, name: str) -> None:
    with pytest.raises(BadInput, match=f"local mode cannot start a real {name}"):
        engine_adapter(kind).local_launch_command(REPLICA, (1,))


def test_signals_sum_over_ranks_and_missing_values_stay_none() -> None:
    assert engine_adapter("vllm").parse_signals(PAGE) == EngineSignals(
        running=4.0,
        waiting=2.0,
        kv_usage=0.3,
        prompt_tokens_total=1_500_010.0,
        generation_tokens_total=None,
        prefix_queries_total=6406.0,
        prefix_hits_total=4224.0,
        preemptions_total=None,
        sleeping=False,
    )


def test_signals_of_one_rank_exclude_the_others() -> None:
    first, second = (engine_adapter("vllm").parse_signals(PAGE, rank) for rank in (0, 1))
    assert (first.running, first.kv_usage, first.sleeping) == (3.0, 0.5, True)
    assert (second.running, second.kv_usage, second.sleeping) == (1.0, 0.1, False)
    assert second.prefix_queries_total is None


def test_older_metric_names_are_understood() -> None:
    page = b'vllm:gpu_cache_usage_perc{model_name="a"} 0.25\nvllm:gpu_prefix_cache_hits_total{model_name="a"} 7\n'
    signals = engine_adapter("vllm").parse_signals(page)
    assert (signals.kv_usage, signals.prefix_hits_total, signals.sleeping) == (0.25, 7.0, None)


@pytest.mark.parametrize(
    "page",
    [b"", b"\n\n", b"<html>", b"vllm:num_requests_running", b"vllm:num_requests_waiting{} x\n", b"\xff\x00" * 99],
)
def test_invalid_metrics_page_gives_no_signals(page: bytes) -> None:
    assert engine_adapter("vllm").parse_signals(page).waiting is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("b-fresh.txt", EngineSignals(0, 0, 0, 0, 0, 0, 0, 0, False)),
        ("b-during-3-running.txt", EngineSignals(1, 1, 0.4724409448818898, 412, 5142, 412, 0, 0, False)),
        ("a-after-scenarios.txt", EngineSignals(0, 0, 0, 6408, 1233, 6406, 4224, 0, False)),
        ("dp2.txt", EngineSignals(0, 0, 0, 800, 16, 800, 384, 0, False)),
    ],
)
def test_recorded_vllm_metrics_are_understood(name: str, expected: EngineSignals) -> None:
    assert engine_adapter("vllm").parse_signals((RECORDED_METRICS / name).read_bytes()) == expected


def test_simulated_engine_has_the_same_metrics() -> None:
    assert engine_adapter("sim").parse_signals(PAGE, 1) == engine_adapter("vllm").parse_signals(PAGE, 1)


def test_vllm_command_has_model_name_address_and_cached_token_reports() -> None:
    launch = engine_adapter("vllm").local_launch_command(replace(REPLICA, args=("--max-model-len=4096",)), [8001])
    assert launch.command[:3] == ("vllm", "serve", "Qwen/Qwen3-8B")
    assert (flag_value(launch, "--served-model-name"), flag_value(launch, "--port")) == ("qwen", "8001")
    assert flag_value(launch, "--host") == "127.0.0.1"
    assert "--enable-prompt-tokens-details" in launch.command
    assert launch.command[-1] == "--max-model-len=4096"
    assert (launch.env, launch.prints_ready_line, launch.ignored_args) == ({"A": "b"}, False, ())


def test_vllm_loads_a_local_folder() -> None:
    launch = engine_adapter("vllm").local_launch_command(replace(REPLICA, source="file:///models/a"), [8001])
    assert launch.command[2] == "/models/a"


@pytest.mark.parametrize("source", ["s3://bucket/a", "gs://b/a", "oci://r/a", "pvc:claim/a"])
def test_unsupported_vllm_source_is_refused_with_a_fix(source: str) -> None:
    with pytest.raises(BadInput, match="use hf:// or file://") as caught:
        engine_adapter("vllm").local_launch_command(replace(REPLICA, source=source), [8001])
    assert caught.value.field == "spec.model.uri"


def test_vllm_process_serves_one_port() -> None:
    with pytest.raises(BadInput, match="one process per replica"):
        engine_adapter("vllm").local_launch_command(REPLICA, [1, 2])


def test_simulator_command_has_ports_name_profile_speed_and_seed() -> None:
    launch = engine_adapter("sim").local_launch_command(replace(REPLICA, speed=2.0, seed=5), [9001, 9002])
    assert launch.command[:4] == (sys.executable, "-m", "fairlead_sim", "engine")
    assert (flag_value(launch, "--listen"), flag_value(launch, "--count")) == ("127.0.0.1:9001", "2")
    assert (flag_value(launch, "--served-model-name"), flag_value(launch, "--profile")) == ("qwen", "910b4")
    assert (flag_value(launch, "--speed"), flag_value(launch, "--seed")) == ("2", "5")
    assert launch.prints_ready_line


def test_custom_profile_is_passed_as_json() -> None:
    mine = replace(builtin_profile("910b4"), kv_tokens=7)
    launch = engine_adapter("sim").local_launch_command(replace(REPLICA, profile=mine), [9001])
    assert EngineProfile(**json.loads(flag_value(launch, "--profile"))) == mine


def test_a_coefficient_that_a_later_release_adds_restarts_no_simulated_engine() -> None:
    mine = EngineProfile("mine", 1e-4, kv_tokens=7, cpu_token_seconds=0.0)
    assert profile_argument(mine) == '{"name": "mine", "prefill_token_seconds": 0.0001, "kv_tokens": 7}'


def test_simulator_ports_must_be_consecutive() -> None:
    with pytest.raises(BadInput, match="consecutive"):
        engine_adapter("sim").local_launch_command(REPLICA, [9001, 9003])


def test_truncated_number_is_ignored() -> None:
    cut = PAGE[: PAGE.index(b"1.5e+06") + 3]
    assert engine_adapter("vllm").parse_signals(cut).prompt_tokens_total is None
    assert engine_adapter("vllm").parse_signals(cut).waiting == 2.0


def test_simulated_vllm_uses_arguments_that_affect_simulation() -> None:
    args = ("--max-model-len", "4096", "--dtype", "bfloat16", "--enforce-eager", "--max-num-queued-reqs=8")
    launch = engine_adapter("sim").local_launch_command(replace(REPLICA, args=args), [9001])
    assert launch.command[-3:] == ("--max-model-len", "4096", "--max-num-queued-reqs=8")
    assert launch.ignored_args == ("--dtype", "bfloat16", "--enforce-eager")


def test_sim_engine_uses_every_argument() -> None:
    launch = engine_adapter("sim").local_launch_command(replace(REPLICA, kind="sim", args=("--fault", "hang")), [9001])
    assert launch.command[-2:] == ("--fault", "hang")


@pytest.mark.parametrize("name", sorted(builtin_profiles()))
@pytest.mark.parametrize("kind", ["vllm", "sim"])
def test_default_context_length_fits_every_builtin_profile(name: str, kind: str) -> None:
    launch = engine_adapter("sim").local_launch_command(
        replace(REPLICA, profile=builtin_profile(name), kind=kind), [9001]
    )
    parser = argparse.ArgumentParser()
    add_engine_arguments(parser)
    settings = parse_engine_options(parser.parse_args(launch.command[4:])).settings
    assert settings.max_model_len == min(DEFAULT_CONTEXT_TOKENS, builtin_profile(name).kv_tokens)


def test_given_context_length_is_kept() -> None:
    small = replace(REPLICA, profile=builtin_profile("l4-qwen8b"), args=("--max-model-len=4096",))
    assert [
        word for word in engine_adapter("sim").local_launch_command(small, [9001]).command if "max-model" in word
    ] == ["--max-model-len=4096"]


@pytest.mark.parametrize("args", [("--max-model-len=auto",), ("--max-model-len", "32k"), ("--block-size",)])
def test_unreadable_simulator_value_is_ignored(args: tuple[str, ...]) -> None:
    assert split_args(args) == ((), args)


def test_simulator_parses_its_command_line() -> None:
    parser = argparse.ArgumentParser()
    add_engine_arguments(parser)
    shared: tuple[str, ...] = (
        "--max-model-len=4096",
        "--block-size",
        "32",
        "--scheduling-policy",
        "priority",
        "--shutdown-timeout=3",
    )
    shared += ("--max-num-queued-reqs=8", "--max-num-queued-tokens", "900")
    shared += ("--max-num-seqs=16", "--max-num-batched-tokens=2048")
    replica = replace(REPLICA, profile=replace(builtin_profile("910b4"), kv_tokens=70_000), speed=2.5, args=shared)
    launch = engine_adapter("sim").local_launch_command(replica, [9001, 9002])
    assert launch.ignored_args == ()
    options = parse_engine_options(parser.parse_args(launch.command[4:]))
    assert (options.host, options.port, options.count) == ("127.0.0.1", 9001, 2)
    profile = replace(replica.profile, max_sequences=16, step_tokens=2048)
    assert (options.settings.profile, options.settings.speed) == (profile, 2.5)
    assert options.settings.served_names == ("qwen",)
    assert options.settings.max_model_len == 4096


def test_splitting_loses_no_argument() -> None:
    args = ("stray", "--a", "--max-model-len=1", "--b", "1", "2")
    taken, ignored = split_args(args)
    assert sorted(taken + ignored) == sorted(args)
