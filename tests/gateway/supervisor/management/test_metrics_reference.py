"""A scrape shows exactly the metrics of `METRICS`, which docs/reference/metrics.md lists."""

import re
from typing import Any

from fairlead_gateway.telemetry.decision_log import ShadowAnswer
from fairlead_gateway.telemetry.metrics import METRICS
from fairlead_gateway.telemetry.status_types import BlockCounts, IndexState, InstanceIndexStatus, ModelIndexStatus


def test_a_scrape_shows_exactly_the_documented_metrics_with_their_labels(made_up: Any) -> None:
    made_up.lag._lags.append(0.001)
    made_up.telemetry.non_model_counters.update(
        redis_connected=1, redis_published_total=3, redis_dropped_total=2, redis_refused_total=1
    )
    made_up.telemetry.record_rejected(None, 404, "unknown-model")
    made_up.telemetry.record_kept_back("chat/llama-70b", "removed-field", "rid")
    made_up.telemetry.record_handoff("chat/llama-70b", "failed", "expired")
    made_up.telemetry.record_fallback("chat/llama-70b", "Unavailable", "chat/llama-8b")
    made_up.telemetry.record_route("chat/llama-70b", 200, "chat/assistant")
    made_up.telemetry.record_adapter_request("other", "sql")
    made_up.telemetry.record_adapter_load("other", "sql", 0.4)
    made_up.telemetry.record_queue_exit("chat/llama-70b", "deadline")
    made_up.telemetry.record_prefill("chat/llama-70b", "main-0/9001/0", 0.2, "ok")
    made_up.telemetry.non_model_counters.update(
        access_log_dropped_total=1, spans_exported_total=2, spans_dropped_total=3
    )
    made_up.telemetry.non_model_counters.update(
        workers=2, worker_deaths_total=1, fleet_age_seconds=3, keys=2, keys_file_broken=0
    )
    made_up.telemetry.non_model_counters.update(
        usage_records_written_total=5, usage_records_lost_total=0, usage_records_pending=0
    )
    made_up.telemetry.tenant_values = {
        family.name.removeprefix("fairlead_gateway_"): [("acme", 1.0)]
        for family in METRICS
        if family.labels == ("tenant",)
    }
    rest = ("peer_sent_total", "peer_heard_total", "peer_limited_total", "peer_dropped_total")
    rest += ("peer_missed_total", "peer_poisoned_total")
    made_up.telemetry.peer_values = dict.fromkeys(rest, 1.0) | {
        "peers": 2,
        "peer_age_seconds": 0.1,
        "peer_in_flight": 4,
    }
    status = InstanceIndexStatus(
        IndexState.INDEX,
        "",
        90,
        100,
        3,
        1,
        2,
        0,
        0.9,
        BlockCounts(3, 2, 1),
    )
    made_up.telemetry.index_status = {
        "chat/llama-70b": ModelIndexStatus({"main-0/9001/0": status}, 20, 1, 5, "engines are asked")
    }
    answer = ShadowAnswer(False, 0.1, 0.01, 10)
    made_up.telemetry.record_copy("chat/llama-70b", "chat/llama-8b", "answered")
    made_up.telemetry.record_comparison("chat/llama-70b", "chat/llama-8b", answer, answer)
    made_up.telemetry.ejection_seconds = {"main-0/9001/0": 75.0}
    made_up.serve(200)
    text = made_up.telemetry.render(made_up.fleet(), made_up.loads(), made_up.clock.now()).decode()
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    assert types == {family.name: family.kind for family in METRICS}
    labels: dict[str, set[str]] = {}
    for name, held in re.findall(r"^(\w+?)(?:\{(.*)\})? \S+$", text, re.MULTILINE):
        family = name if name in types else re.sub(r"_(bucket|sum|count)$", "", name)
        labels.setdefault(family, set()).update(set(re.findall(r'(\w+)="', held)) - {"le"})
    silent = {"fairlead_gateway_engine_prompt_tokens_total", "fairlead_gateway_engine_generation_tokens_total"}
    silent |= {"fairlead_gateway_engine_sleeping"}  # the simulated gateway's engines do not report these
    assert labels == {family.name: set(family.labels) for family in METRICS if family.name not in silent}
