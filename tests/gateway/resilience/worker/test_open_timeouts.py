"""Every time in the gateway that may be None or infinite, with its reason.

A missing time must not switch off a rule. A hung engine once kept plain requests for ten minutes,
since nothing predicted their length. Each row says what bounds the wait instead.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).parents[4] / "gateway" / "fairlead_gateway"
_TIME = re.compile(r"(?:^|_)(?:seconds|seconds_left|timeout|deadline|until)$")

_PLACES = (
    *("worker", "*/worker", "*/worker.py", "http", "openai", "proxy", "upstream", "continuation"),
    *("request_context.py", "router_registry.py", "runtime.py", "journal.py"),
    *("admission", "body_check", "limits", "peers", "resilience"),
)
"""All that runs in workers alone, and the features whose cores bound a wait."""
_SILENCE = "not asked again; `stream_silence_seconds` bounds the wait"
_RECORD = "a time of the past in a record; nothing waits for it"
_AT_ONCE = "nothing has happened yet, so the first one is due at once"
_LEAST = "the start of a minimum; without values there is nothing to bound"

REASONS: dict[str, str] = {
    "admission/fair_share.py FairShare._compact:inf": _LEAST,
    "admission/kv_capacity.py EngineLoad.__init__:inf": "nothing says how many requests it computes at a time",
    "admission/admission_policy.py LengthClasses.__init__:inf": _LEAST,
    "admission/admission_policy.py LengthClasses.classify:inf": _LEAST,
    "admission/admission_policy.py LengthClasses.objective_spread:inf": _LEAST,
    "admission/admission_policy.py AdmissionPolicy.__init__:inf": "no sheddable request waits",
    "admission/admission_policy.py AdmissionPolicy.take_expired:inf": "the default looks at all requests",
    "limits/ledger.py TenantLedger._updates:inf": "a limit without a window has no end; leases renew it",
    "limits/worker/limit_plan.py LeasedLimit.__init__:inf": "a soft limit refuses nothing, so it is always open",
    "limits/worker/limit_plan.py LeasedLimit.replace:inf": "the same, if a document makes it soft",
    "continuation/stream_moves.py StreamProgress:first_seconds": "a stream of unknown speed moves",
    "continuation/stream_moves.py StreamProgress:token_seconds": "the same",
    "continuation/stream_moves.py MoveDecision:rest_seconds": "a stream without a forecast is not counted as saved time",
    "admission/worker/model_admission.py ModelAdmission.__init__:inf": _AT_ONCE,
    "admission/worker/model_admission.py ModelAdmission._settle:inf": "the next bound is that of its tokens",
    "admission/worker/model_admission.py ModelAdmission.update_fleet:inf": _LEAST,
    "proxy/route_choice.py :inf": "a text counts as more than any number of tokens",
    "telemetry/worker/access_log.py AccessRecord:duration_seconds": _RECORD,
    "telemetry/worker/access_log.py AccessRecord:overhead_seconds": _RECORD,
    "telemetry/worker/access_log.py AccessRecord:queued_seconds": _RECORD,
    "telemetry/worker/access_log.py AccessRecord:ttft_seconds": _RECORD,
    "telemetry/worker/access_log.py _round_microseconds(seconds)": _RECORD,
    "openai/field_policy.py :inf": "any number passes in an argument",
    "openai/request.py client_timeout": "the client sets no deadline; the gateway has its own",
    "openai/request.py client_timeout:inf": "an infinite deadline is refused",
    "openai/request.py remaining_timeout_header(deadline)": "the engine is told none",
    "openai/request.py total_timeout": (
        "a stream may go on for hours; its stall timeout and `stream_silence_seconds` bound each silence"
    ),
    "upstream/connection.py ResponseSink.check_silence:inf": _SILENCE,
    "upstream/response.py StreamObserver.check_silence:inf": _SILENCE,
    "proxy/request_recorder.py _overhead_seconds": _RECORD,
    "proxy/request_recorder.py tpot_seconds": _RECORD,
    "limits/worker/limit_plan.py LimitPlan.__init__:inf": _AT_ONCE,
    "request_context.py RequestContext.__init__:self.deadline": "as `total_timeout`, from which it is made",
    "resilience/worker/engine_progress.py EngineProgress.still_seconds": (
        "the engine has no counters; earlier answers of the model bound the wait"
    ),
    "resilience/poison_requests.py PoisonRequestGuard.seconds_left": "the body is not in quarantine",
    "resilience/worker/retry.py StallTimeout.__init__:self.answer_seconds": (
        "the length is open; counters or earlier answers bound the wait"
    ),
}


def _sources() -> Iterator[tuple[str, ast.Module]]:
    places = [place for pattern in _PLACES for place in _ROOT.glob(pattern)]
    for path in sorted({path for place in places for path in (place.rglob("*.py") if place.is_dir() else [place])}):
        name = path.relative_to(_ROOT)
        if "supervisor" not in name.parts:
            yield name.as_posix(), ast.parse(path.read_text())


def _is_optional(annotation: ast.expr | None) -> bool:
    text = "" if annotation is None else ast.unparse(annotation)
    return re.search(r"\bfloat \| None\b|\bint \| None\b", text) is not None


def _is_infinite(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return ast.unparse(node) == "math.inf"
    if isinstance(node, ast.Name):
        return node.id == "inf" and isinstance(node.ctx, ast.Load)
    return isinstance(node, ast.Call) and ast.unparse(node) in ("float('inf')", "float('-inf')")


def _open_times(tree: ast.AST, scope: str) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        inner = scope
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            inner = f"{scope}.{node.name}" if scope else node.name
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if is_function and _TIME.search(node.name) and _is_optional(node.returns):
            yield inner
        if isinstance(node, ast.arg) and _TIME.search(node.arg) and _is_optional(node.annotation):
            yield f"{scope}({node.arg})"
        if isinstance(node, ast.AnnAssign) and _is_optional(node.annotation):
            name = ast.unparse(node.target)
            if _TIME.search(name.removeprefix("self.")):
                yield f"{scope}:{name}"
        if _is_infinite(node):
            yield f"{scope}:inf"
        yield from _open_times(node, inner)


def test_every_time_that_may_be_open_has_a_reason() -> None:
    assert {f"{name} {place}" for name, tree in _sources() for place in _open_times(tree, "")} == set(REASONS)
