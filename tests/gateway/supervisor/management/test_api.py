"""The management API answers from memory, in the shapes that its OpenAPI promises."""

import json
from dataclasses import replace
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fairlead.decision import Decision, DecisionText
from fairlead.fleet.hung_engines import EjectionReport
from fairlead.fleet.model import Fleet, Model
from fairlead.routes.model import FailureKind, Fallback, Route, RouteRule, RouteTarget, Shadow
from fairlead.runtime.clock import ManualClock
from fairlead_autoscaler.collector import metrics_parser
from fairlead_gateway.routes.target_choice import RouteDecision
from fairlead_gateway.supervisor.management import GatewayView
from fairlead_gateway.telemetry.decision_log import DecisionRecord
from fairlead_operator.canary.observer import GatewayStats
from fairlead_operator.hung_engines.gateway_reports import InstanceReport, parse_fleet
from fairlead_testing.gateway.decision_view import append_decision
from fairlead_testing.gateway.management_client import management_answer


def _get(view: GatewayView, path: str, **headers: str) -> httpx.Response:
    return management_answer(view, path, headers=headers)


def _preview(view: GatewayView, query: str) -> httpx.Response:
    return management_answer(view, f"/api/route{query}", method="POST", json={"model": "chat/assistant"})


def _json(view: GatewayView, path: str) -> Any:
    answer = _get(view, path)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_readyz_says_ready_and_what_is_degraded(made_up: Any) -> None:
    made_up.notes = ["no Redis"]
    assert _json(made_up, "/readyz") == {"ready": True, "notes": ["no Redis"]}


def test_readyz_is_503_while_no_request_can_be_answered(made_up: Any) -> None:
    made_up.is_ready, made_up.notes = False, ["no engine of chat/llama-70b is ready"]
    answer = _get(made_up, "/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"ready": False, "notes": ["no engine of chat/llama-70b is ready"]}


def test_metrics_are_prometheus_text(made_up: Any) -> None:
    made_up.serve(50)
    answer = _get(made_up, "/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert len(list(text_string_to_metric_families(answer.text))) > 50


def test_the_fleet_shows_each_instance_with_its_load_and_the_age_of_its_signals(made_up: Any) -> None:
    fleet = _json(made_up, "/api/fleet")
    big = next(model for model in fleet["models"] if model["key"] == "chat/llama-70b")
    assert big["objectives"]["ttft_seconds"] == 2.0
    assert [instance["state"] for instance in big["instances"]].count("Draining") == 1
    first = big["instances"][0]
    assert first["in_flight"] == 2
    assert abs(first["signals"]["age_seconds"] - 0.8) < 1e-6
    assert first["signals"]["prefix_hit_share"] == 0.2


def test_fleet_shows_an_ejection_without_answers_and_the_age_of_the_last_answer(
    clock: ManualClock, made_up: Any
) -> None:
    first, second = (instance.id for instance in made_up.snapshot.instances["chat/llama-70b"][:2])
    made_up.ejections = {first: EjectionReport(75.0, "3 timeouts", 2, 1)}
    made_up.answer_times = {first: clock.now() - 90.0, second: clock.now() - 2.0}
    instances = {instance["id"]: instance for instance in _json(made_up, "/api/fleet")["models"][0]["instances"]}
    ejection = {"seconds": 75.0, "cause": "3 timeouts", "failed_probes": 2, "workers": 1}
    assert (instances[first]["ejection"], instances[first]["answer_age_seconds"]) == (ejection, 90.0)
    assert (instances[second]["ejection"], instances[second]["answer_age_seconds"]) == (None, 2.0)
    others = [instance for name, instance in instances.items() if name not in (first, second)]
    assert {instance["answer_age_seconds"] for instance in others} == {None}


def test_operator_reads_ejections_and_the_autoscaler_their_seconds(clock: ManualClock, made_up: Any) -> None:
    first, second = (instance.id for instance in made_up.snapshot.instances["chat/llama-70b"][:2])
    made_up.ejections = {first: EjectionReport(75.0, "3 timeouts", 2, 1)}
    made_up.answer_times = {second: clock.now() - 2.0}
    reports = {report.id: report for report in parse_fleet(_get(made_up, "/api/fleet").content)}
    assert reports[first] == InstanceReport(first, made_up.ejections[first], None)
    assert reports[second] == InstanceReport(second, None, 2.0)
    page = metrics_parser.parse_page(_get(made_up, "/metrics").text, ["chat/llama-70b"])
    gauges = {key: value for key, value in page.gauges.items() if key[0] == "ejected_seconds"}
    assert gauges == {("ejected_seconds", "chat/llama-70b", first): 75.0}


def test_signals_that_never_came_are_null(clock: ManualClock, made_up: Any) -> None:
    made_up.populate(ready=0, starting=1)
    starting = _json(made_up, "/api/fleet")["models"][0]["instances"][0]
    assert starting["state"] == "Starting"
    assert starting["signals"] is None


def test_stats_show_the_minute_and_the_totals(clock: ManualClock, made_up: Any) -> None:
    made_up.serve(100)
    clock.advance(90.0)
    made_up.serve(10)
    model = _json(made_up, "/api/stats")["models"]["chat/llama-70b"]
    assert model["totals"]["requests"] == 100  # of 110; every eleventh is still running
    assert model["window"]["requests"] == 9
    assert 0.05 < model["window"]["ttft_seconds"]["p50"] < model["window"]["ttft_seconds"]["p90"] * 1.0001
    assert 0 < model["window"]["cached_token_share"] < 1
    assert 0 <= model["window"]["share_on_homes"] <= 1
    assert model["totals"]["load_cov"] > 0
    assert model["in_flight"] == sum(load.inflight for key, load in made_up.ledger.items() if "/90" in key)
    shares = [item["share_of_work"] for item in model["instances"].values()]
    assert abs(sum(shares) - 1) < 1e-9
    stats = msgspec.json.decode(_get(made_up, "/api/stats").content, type=GatewayStats)  # as the operator reads it
    totals = [item.totals for item in stats.models["chat/llama-70b"].instances.values()]
    assert sum(item.first_tokens for item in totals) > 90  # some fail before
    assert sum(item.attempts for item in totals) >= sum(item.answers for item in totals) > 0


def test_stats_of_a_model_without_traffic_are_zeros_and_nulls(made_up: Any) -> None:
    model = _json(made_up, "/api/stats?model=qwen3-8b")["models"]["default/qwen3-8b"]
    assert model["window"]["requests"] == 0
    assert model["window"]["ttft_seconds"] == {"p50": None, "p90": None, "p99": None, "mean": None}
    assert model["window"]["within_objective"] is None
    assert model["window"]["load_cov"] is None


def test_requests_for_unknown_models_show_up_in_the_stats(made_up: Any) -> None:
    made_up.telemetry.record_rejected(None, 404, "unknown-model")
    assert _json(made_up, "/api/stats")["unknown_model_requests"] == 1


def test_a_decision_names_every_candidate_with_its_inputs_and_why(made_up: Any) -> None:
    made_up.serve(1)
    decision = _json(made_up, "/api/decisions")["decisions"][0]
    choice = decision["choices"][0]
    chosen = [candidate for candidate in choice["candidates"] if candidate["chosen"]]
    assert [candidate["id"] for candidate in chosen] == [choice["instance"]]
    assert chosen[0]["inputs"]["backlog_seconds"] == {"value": 0.2, "age_seconds": None}
    assert all(candidate["why"] for candidate in choice["candidates"])
    assert choice["inputs"]["mean/backlog_seconds"]["value"] == 0.31
    assert decision["outcome"]["status"] == 200


def test_decisions_are_newest_first_limited_and_of_one_model_when_asked(made_up: Any) -> None:
    made_up.serve(20)
    made_up.serve(20, key="default/qwen3-8b")
    decisions = _json(made_up, "/api/decisions?limit=5&model=llama-70b")["decisions"]
    assert len(decisions) == 5
    assert {decision["model"] for decision in decisions} == {"chat/llama-70b"}


ASSISTANT = Route(
    "chat",
    "assistant",
    (RouteTarget("chat/llama-70b", 9), RouteTarget("default/qwen3-8b", 1)),
    (RouteRule((RouteTarget("default/qwen3-8b"),), headers=(("x-canary", "yes"),)),),
    names=("acme/assistant",),
    fallbacks=(Fallback("default/qwen3-8b", frozenset({FailureKind.UNAVAILABLE, FailureKind.NO_CAPACITY})),),
    shadow=Shadow("default/qwen3-8b", 10),
)


def serve_assistant(made_up: Any) -> None:
    """Logs requests of models, and between them one that named the route."""
    made_up.snapshot = replace(made_up.snapshot, routes={ASSISTANT.key: ASSISTANT})
    made_up.serve(2)
    record = DecisionRecord(
        "of-route", 1.0, "default/qwen3-8b", Decision("main-0/9101/0", "only-one", DecisionText("alone")), 1, 10.0
    )
    record.route = RouteDecision("acme/assistant", ASSISTANT.key, "default/qwen3-8b", "session", None, (1, 10))
    append_decision(made_up.log, record)


@pytest.mark.parametrize("name", ["acme/assistant", "chat/assistant"])
def test_decisions_are_found_by_the_names_of_a_route(made_up: Any, name: str) -> None:
    serve_assistant(made_up)
    (decision,) = _json(made_up, f"/api/decisions?model={name}")["decisions"]
    assert (decision["request_id"], decision["model"]) == ("of-route", "default/qwen3-8b")


def test_decisions_of_an_unknown_name_are_404_and_name_similar_routes(made_up: Any) -> None:
    serve_assistant(made_up)
    answer = _get(made_up, "/api/decisions?model=chat/asistant")
    assert answer.status_code == 404
    assert "chat/assistant" in answer.json()["error"]["message"]


def test_fleet_has_the_routes(made_up: Any) -> None:
    assert _json(made_up, "/api/fleet")["routes"] == []
    serve_assistant(made_up)
    assert _json(made_up, "/api/fleet")["routes"] == [
        {
            "key": "chat/assistant",
            "names": ["acme/assistant"],
            "targets": {"chat/llama-70b": 9, "default/qwen3-8b": 1},
            "overrides": 1,
            "fallbacks": [{"model": "default/qwen3-8b", "when": ["NoCapacity", "Unavailable"], "after": None}],
            "shadow": {"model": "default/qwen3-8b", "percent": 10},
        }
    ]


def test_preview_has_the_headers_and_the_fallbacks(made_up: Any) -> None:
    serve_assistant(made_up)
    answer = _preview(made_up, "?header=X-Canary:%20yes&header=x-team:a")
    assert answer.status_code == 200
    assert made_up.preview_headers == [("x-canary", "yes"), ("x-team", "a")]
    assert answer.json()["fallbacks"] == [
        {"model": "default/qwen3-8b", "when": ["NoCapacity", "Unavailable"], "after": None}
    ]


@pytest.mark.parametrize("header", ["x-canary", "x canary:yes", ":yes", "a:b%0d%0ac:d"])
def test_preview_of_a_header_without_name_or_value_is_400(made_up: Any, header: str) -> None:
    serve_assistant(made_up)
    answer = _preview(made_up, f"?header={header}")
    assert answer.status_code == 400
    assert "NAME:VALUE" in answer.json()["error"]["message"]


def test_one_decision_is_found_by_its_request_id_even_with_a_slash(made_up: Any) -> None:
    record = DecisionRecord(
        "team/7", 1.0, "chat/llama-70b", Decision(None, "none", DecisionText("no instance is ready")), 1, 10.0
    )
    append_decision(made_up.log, record)
    decision = _json(made_up, "/api/decisions/team/7")
    assert decision["choices"][0]["instance"] is None
    assert decision["choices"][0]["candidates"] == []
    assert decision["outcome"] is None


def test_an_unknown_request_is_404_in_the_error_shape(made_up: Any) -> None:
    answer = _get(made_up, "/api/decisions/nobody")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert "nobody" in answer.json()["error"]["message"]


def test_an_unknown_model_is_404_naming_near_ones(made_up: Any) -> None:
    answer = _get(made_up, "/api/stats?model=llama-7b")
    assert answer.status_code == 404
    assert "llama-70b" in answer.json()["error"]["message"]


def test_a_bad_parameter_is_400_naming_it(made_up: Any) -> None:
    answer = _get(made_up, "/api/decisions?limit=0")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "limit"


def test_an_unknown_path_is_404_in_the_error_shape(made_up: Any) -> None:
    answer = _get(made_up, "/docs")
    assert answer.status_code == 404
    assert set(answer.json()) == {"error"}


def test_openapi_describes_every_route(made_up: Any) -> None:
    schema = _json(made_up, "/openapi.json")
    assert set(schema["paths"]) == {
        "/readyz",
        "/metrics",
        "/api/fleet",
        "/api/stats",
        "/api/decisions",
        "/api/decisions/{request_id}",
        "/api/audit",
        "/api/tenants",
        "/api/route",
        "/api/usage",
        "/api/limits",
        "/api/budgets",
    }
    assert all(way["summary"] for path in schema["paths"].values() for way in path.values())


def test_a_model_that_may_have_no_instance_is_told_to_wake(made_up: Any) -> None:
    model = Model("chat", "rarely", wakes=True)
    made_up.snapshot = Fleet(1, 1, {model.key: model, "chat/other": Model("chat", "other")}, {})
    wakes = {model["key"]: model["wakes"] for model in _json(made_up, "/api/fleet")["models"]}
    assert wakes == {"chat/rarely": True, "chat/other": False}


def test_an_empty_fleet_has_answers_too(made_up: Any) -> None:
    made_up.snapshot = Fleet()
    assert _json(made_up, "/api/fleet")["models"] == []
    assert _json(made_up, "/api/stats")["models"] == {}


def test_the_page_needs_nothing_from_outside_and_allows_only_its_own_code(made_up: Any) -> None:
    answer = _get(made_up, "/")
    assert answer.status_code == 200
    assert "<script>" in answer.text
    assert "page.js" not in answer.text.replace("(page.css and page.js are put in)", "")
    for mark in ("src=", "@import", "url(", "http://127", "https://"):
        assert mark not in answer.text, mark
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_never_writes_markup(made_up: Any) -> None:
    text = _get(made_up, "/").text
    for mark in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert mark not in text, mark


def test_no_answer_is_not_json_when_numbers_are_not_finite(made_up: Any) -> None:
    made_up.serve(30)
    json.loads(_get(made_up, "/api/stats").text, parse_constant=lambda name: 1 / 0)
