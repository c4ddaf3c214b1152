"""The metrics page: what steps and requests count, with vLLM's names, labels, types and buckets."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fairlead.engine_profile import builtin_profile
from fairlead.runtime.clock import ManualClock
from fairlead_sim.engine.metrics import EngineFacts, EngineMetrics
from fairlead_sim.engine.scheduler import EngineCore
from fairlead_sim.engine.sequence import EngineSequence

DUMPS = Path(__file__).parents[2] / "recordings" / "vllm" / "metrics"

COUNTERS = [
    *("estimated_flops_per_gpu", "estimated_read_bytes_per_gpu", "estimated_write_bytes_per_gpu"),
    *("prefix_cache_queries", "prefix_cache_hits", "external_prefix_cache_queries", "external_prefix_cache_hits"),
    *("mm_cache_queries", "mm_cache_hits", "num_preemptions"),
    *("prompt_tokens", "prompt_tokens_cached", "generation_tokens"),
]
GAUGES = ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"]
LABELLED = {
    "num_requests_waiting_by_reason": ("reason", "capacity deferred"),
    "engine_sleep_state": ("sleep_state", "awake weights_offloaded discard_all"),
    "prompt_tokens_by_source_total": ("source", "local_compute local_cache_hit external_kv_transfer"),
    "prompt_tokens_cached_by_source_total": ("source", "device host p2p disk external_unspecified"),
    "request_success_total": ("finished_reason", "stop length abort error repetition"),
}
TOKENS = "1 2 5 10 20 50 100 200 500 1000 2000"
REQUEST = "0.3 0.5 0.8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680"
GAP = "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1 2.5 5 7.5 10 20 40 80"
BLOCK = "0.001 0.002 0.005 0.01 0.02 0.05 0.1 0.2 0.5 1 2 5 10 20 30 60 120 300 600 1200 1800"
HISTOGRAMS = {
    "request_prompt_tokens": TOKENS,
    "request_generation_tokens": TOKENS,
    "request_max_num_generation_tokens": TOKENS,
    "request_params_max_tokens": TOKENS,
    "request_prefill_kv_computed_tokens": TOKENS,
    "request_params_n": "1 2 5 10 20",
    "request_num_preemptions": "1 2 3 4 5 10 20",
    "iteration_tokens_total": "1 8 16 32 64 128 256 512 1024 2048 4096 8192 16384",
    "time_to_first_token_seconds": (
        "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10 20 40 80 160 640 2560"
    ),
    "inter_token_latency_seconds": GAP,
    "request_time_per_output_token_seconds": GAP,
    "e2e_request_latency_seconds": REQUEST,
    "request_queue_time_seconds": REQUEST,
    "request_inference_time_seconds": REQUEST,
    "request_prefill_time_seconds": REQUEST,
    "request_decode_time_seconds": REQUEST,
    "kv_block_lifetime_seconds": BLOCK,
    "kv_block_idle_before_evict_seconds": BLOCK,
    "kv_block_reuse_gap_seconds": BLOCK,
}


class Bench:
    """A core and its metrics on a manual clock."""

    def __init__(self, *, ranks: int = 1, max_model_len: int = 4_096) -> None:
        self.core = EngineCore(builtin_profile("tiny-cpu"), block_tokens=16)
        self.now = 0.0
        self.metrics = EngineMetrics(
            EngineFacts("tiny", max_model_len, {"block_size": 16}, max_adapters=2, block_tokens=16),
            [lambda: self.core.stats] * ranks,
            clock=ManualClock(),
        )

    def run(self) -> None:
        """Steps until no sequence is left."""
        while (step := self.core.step(self.now)) is not None:
            began, self.now = self.now, self.now + step.seconds
            self.metrics.observe_step(0, step, began, self.now)

    def series(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Returns every series of the page by name and labels."""
        return parsed(self.metrics.render().decode())

    def value(self, name: str, **labels: str) -> float:
        """Returns the one series of that name that has these labels."""
        values = [
            value
            for (series, given), value in self.series().items()
            if series == name and labels.items() <= dict(given).items()
        ]
        assert len(values) == 1, values
        return values[0]


def parsed(page: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def names_and_labels(page: str) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """Returns the series by name and labels; configuration labels appear by name only."""
    free = {"handler", "method", "status", "max_lora", "running_lora_adapters", "waiting_lora_adapters"}
    series = set()
    for name, labels in parsed(page):
        is_config_info = name == "vllm:cache_config_info"
        series.add((name, frozenset((key, "" if is_config_info or key in free else value) for key, value in labels)))
    return series


def types(page: str) -> dict[str, str]:
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE))


def ours_after_one_request(*, ranks: int = 1, max_model_len: int = 4_096) -> str:
    bench = Bench(ranks=ranks, max_model_len=max_model_len)
    bench.core.add(EngineSequence("r", 0.0, 40, 3, adapter="a"))
    bench.run()
    bench.metrics.http.observe_response("/v1/models", "GET", 200, 0.01, received_bytes=0, sent_bytes=10)
    return bench.metrics.render().decode()


def relevant(series: set[tuple[str, frozenset[tuple[str, str]]]]) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """Returns the series without those of the Python process and without our own metric."""
    return {item for item in series if not item[0].startswith(("python_", "process_", "fairlead_"))}


def test_every_counter_and_gauge_of_vllm_is_there_with_its_labels() -> None:
    series = names_and_labels(ours_after_one_request())
    common = {("engine", "0"), ("model_name", "tiny")}
    for name in GAUGES:
        assert (f"vllm:{name}", frozenset(common)) in series
    for name in COUNTERS:
        assert (f"vllm:{name}_total", frozenset(common)) in series
        assert (f"vllm:{name}_created", frozenset(common)) in series
    for name, (label, values) in LABELLED.items():
        for value in values.split():
            assert (f"vllm:{name}", frozenset({*common, (label, value)})) in series
    for reason in ("max_num_queued_reqs", "max_num_queued_tokens"):
        labels = frozenset({("model_name", "tiny"), ("reason", reason)})
        assert ("vllm:admission_rejections_total", labels) in series
        assert ("vllm:admission_rejections_created", labels) in series


def test_every_histogram_of_vllm_has_its_bounds_and_a_created_gauge() -> None:
    series = names_and_labels(ours_after_one_request())
    for name, bounds in HISTOGRAMS.items():
        bucket_bounds = {dict(labels)["le"] for series_name, labels in series if series_name == f"vllm:{name}_bucket"}
        assert bucket_bounds == {str(float(bound)) for bound in bounds.split()} | {"+Inf"}, name
        assert (f"vllm:{name}_created", frozenset({("engine", "0"), ("model_name", "tiny")})) in series


@pytest.mark.parametrize("dump", ["a-after-scenarios", "b-during-3-running", "b-fresh", "dp2"])
def test_the_page_has_every_series_that_a_real_engine_showed(dump: str) -> None:
    theirs = (DUMPS / f"{dump}.txt").read_text()
    ours = ours_after_one_request(
        ranks=2 if dump == "dp2" else 1,
        max_model_len=8_192 if 'le="5000.0",model_name' in theirs else 2_048,
    )
    missing = relevant(names_and_labels(theirs)) - relevant(names_and_labels(ours))
    assert not missing
    assert {name: kind for name, kind in types(theirs).items() if types(ours).get(name) != kind} == {}


def test_the_page_has_no_vllm_series_that_the_real_engine_lacks() -> None:
    dumps = sorted(DUMPS.glob("[ab]-*.txt"))
    theirs = set().union(*(names_and_labels(path.read_text()) for path in dumps))
    assert not relevant(names_and_labels(ours_after_one_request())) - theirs


def test_a_request_is_counted_from_arrival_to_its_last_token() -> None:
    bench = Bench()
    bench.core.add(EngineSequence("r", 0.0, 40, 5))
    bench.run()
    assert bench.value("vllm:prompt_tokens_total") == 40
    assert bench.value("vllm:generation_tokens_total") == 5
    assert bench.value("vllm:request_success_total", finished_reason="length") == 1
    assert bench.value("vllm:time_to_first_token_seconds_count") == 1
    assert bench.value("vllm:inter_token_latency_seconds_count") == 4
    assert bench.value("vllm:e2e_request_latency_seconds_sum") == pytest.approx(bench.now)
    gaps = bench.value("vllm:inter_token_latency_seconds_sum")
    assert bench.value("vllm:request_decode_time_seconds_sum") == pytest.approx(gaps)
    assert bench.value("vllm:iteration_tokens_total_sum") == 45


def test_a_prompt_seen_before_is_counted_as_hit() -> None:
    bench = Bench()
    for name in "ab":
        bench.core.add(EngineSequence(name, bench.now, 64, 1, keys=(1, 2, 3, 4)))
        bench.run()
    assert bench.value("vllm:prefix_cache_queries_total") == 128
    assert bench.value("vllm:prefix_cache_hits_total") == 48
    assert bench.value("vllm:prompt_tokens_by_source_total", source="local_cache_hit") == 48
    assert bench.value("vllm:prompt_tokens_by_source_total", source="local_compute") == 80
    assert bench.value("vllm:kv_block_reuse_gap_seconds_count") == 3


def test_gauges_show_the_core_as_it_is_now() -> None:
    bench = Bench()
    for number in range(40):
        bench.core.add(EngineSequence(str(number), 0.0, 100, 10))
    bench.core.step(0.0)
    assert bench.value("vllm:num_requests_running") + bench.value("vllm:num_requests_waiting") == 40
    waiting = bench.value("vllm:num_requests_waiting")
    assert bench.value("vllm:num_requests_waiting_by_reason", reason="capacity") == waiting > 0
    assert 0 < bench.value("vllm:kv_cache_usage_perc") <= 1


def test_a_client_that_left_is_counted_nowhere_and_forgotten() -> None:
    bench = Bench()
    for number in range(5_000):
        bench.core.add(EngineSequence(str(number), 0.0, 1, 100))
        bench.metrics.observe_step(0, step, 0.0, bench.now) if (step := bench.core.step(0.0)) else None
        bench.core.abort(str(number))
    assert len(bench.metrics.ranks[0]._last) < 5_000
    assert bench.value("vllm:request_success_total", finished_reason="abort") == 0


def test_sleep_levels_are_reported_as_by_the_real_engine() -> None:
    bench = Bench()
    states = ("awake", "weights_offloaded", "discard_all")
    for level, expected in ((None, (1, 0, 0)), (0, (0, 0, 0)), (1, (0, 1, 0)), (2, (0, 0, 1)), (None, (1, 0, 0))):
        bench.metrics.set_sleep_level(level)
        assert tuple(bench.value("vllm:engine_sleep_state", sleep_state=state) for state in states) == expected


def test_running_adapters_are_named_with_the_time_they_were_seen() -> None:
    bench = Bench()
    bench.core.add(EngineSequence("r", 0.0, 10, 2, adapter="poet"))
    bench.run()
    assert bench.value("vllm:lora_requests_info", running_lora_adapters="poet", max_lora="2") == ManualClock().wall()


def test_rejections_and_http_requests_are_counted() -> None:
    bench = Bench()
    bench.metrics.count_rejection("max_num_queued_reqs")
    for status in (200, 200, 503):
        bench.metrics.http.observe_response("/v1/completions", "POST", status, 0.2, received_bytes=5, sent_bytes=7)
    bench.metrics.http.observe_response(None, "GET", 404, 0.001, received_bytes=0, sent_bytes=22)
    bench.metrics.http.observe_response("/health", "GET", 200, 0.001, received_bytes=0, sent_bytes=0)
    assert bench.value("vllm:admission_rejections_total", reason="max_num_queued_reqs") == 1
    assert bench.value("http_requests_total", handler="/v1/completions", status="2xx") == 2
    assert bench.value("http_requests_total", handler="none", status="4xx") == 1
    assert bench.value("http_request_size_bytes_sum", handler="/v1/completions") == 15
    assert bench.value("http_request_duration_highr_seconds_count") == 4


def test_label_values_are_escaped() -> None:
    bench = Bench()
    metrics = EngineMetrics(EngineFacts('q"u\\o', 100, {}), [lambda: bench.core.stats], clock=ManualClock())
    assert parsed(metrics.render().decode())["vllm:num_requests_running", _labels('q"u\\o')] == 0


def _labels(model: str) -> frozenset[tuple[str, str]]:
    return frozenset({("engine", "0"), ("model_name", model)})


def lines_of(page: str) -> Iterator[str]:
    yield from (line for line in page.splitlines() if not line.startswith("#"))


def test_no_series_appears_twice() -> None:
    names = [line.rpartition(" ")[0] for line in lines_of(ours_after_one_request(ranks=2))]
    assert len(names) == len(set(names))
