"""`fairlead explain` as a command, and one decision of each kind as text."""

import subprocess
from pathlib import Path

import msgspec
import pytest

from fairlead import management_api as api
from fairlead.decision import Decision, DecisionInput, DecisionText, RejectedCandidate
from fairlead.management_api import ShadowOut
from fairlead_cli.app import build_app
from fairlead_cli.explain.command import build_request, render_comparison, render_decision
from fairlead_gateway.routes.target_choice import RouteDecision
from fairlead_gateway.telemetry import RequestOutcome
from fairlead_gateway.telemetry.decision_log import CONTINUATION_RULE, DecisionRecord
from fairlead_gateway.telemetry.handoff_record import HandoffRecord, PrefillAttempt
from fairlead_testing.cli.command_line import run_program
from fairlead_testing.gateway.decision_view import decision_out
from fairlead_testing.gateway.running_gateway import change_outcome, make_outcome
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer

HOME, OTHER = "main-0/9001/0", "main-1/9002/0"
NOT_KNOWN = CannedResponse([b'{"error": {"message": "not in the log"}}'], 404)


def decided(chosen: str, rule: str, reason: str, age: float | None = None) -> Decision:
    inputs = {
        "mean/backlog_seconds": DecisionInput(0.31, age),
        f"{HOME}/cost_seconds": DecisionInput(0.5, age),
        f"{HOME}/matched_tokens": DecisionInput(3_100.0, age),
        f"{HOME}/home": DecisionInput(1.0),
        f"{OTHER}/cost_seconds": DecisionInput(2.5, age),
        f"{OTHER}/backlog_seconds": DecisionInput(None, age),
    }
    other = OTHER if chosen == HOME else HOME
    return Decision(
        chosen, rule, DecisionText(reason, (RejectedCandidate(other, "costs 2.5s against 500ms"),), inputs), 0.5
    )


def record(attempt: int, decision: Decision, story: HandoffRecord | None = None) -> DecisionRecord:
    return DecisionRecord("req-1", 1_800_000_000.0, "chat/llama", decision, attempt, 4_100.0, "team-a", story)


def ended(**changes: object) -> RequestOutcome:
    known = {"duration_seconds": 1.5, "ttft_seconds": 0.41, "itl_mean_seconds": 0.02, "overhead_seconds": 8.4e-5}
    return make_outcome(
        "req-1", "chat/llama", HOME, **{"status": 200, "error": None, "started_wall": 0.0, **known, **changes}
    )  # type: ignore[arg-type]  # a test's shorthand


def logged(records: list[DecisionRecord], outcome: RequestOutcome | None) -> RequestOutcome:
    """Returns the entry of a request in the decision log; outcome: None while it runs."""
    return change_outcome(outcome or make_outcome("req-1"), records=records, has_ended=outcome is not None)


def text(*records: DecisionRecord, outcome: RequestOutcome | None) -> list[str]:
    """As the command prints it."""
    return render_decision(decision_out(logged(list(records), outcome)))


def test_route_is_shown_with_its_reason() -> None:
    routed = record(1, decided(HOME, "affinity", "a home"))
    routed.route = RouteDecision("assistant", "chat/assistant", "chat/llama", "session", None, (9, 10))
    expected = "route: assistant is the route chat/assistant → chat/llama, which gets 9 of 10, by session"
    assert text(routed, outcome=ended())[1] == expected


def test_attempt_shows_candidates_inputs_and_outcome() -> None:
    outcome = ended(
        prompt_tokens=4_096, cached_tokens=3_072, predicted_cached_tokens=3_100, output_tokens=50, within_objective=True
    )
    assert text(record(1, decided(HOME, "affinity", "a home")), outcome=outcome) == [
        "request req-1 · to chat/llama · about 4,100 prompt tokens · tenant team-a · 2027-01-15 08:00:00 UTC",
        "",
        "attempt 1 → main-0 by the rule affinity",
        "     a home",
        "                cost  backlog  cached (about)  home",
        "     √ main-0  500ms        –            3.1k   yes",
        "     · main-1   2.5s        –               –     –  costs 2.5s against 500ms",
        "     mean backlog 310ms; all numbers as of that moment",
        "",
        "outcome: status 200, after 1.5s",
        "     first token after 410ms, 20ms between tokens, the gateway itself took 84us",
        "     4,096 prompt tokens, 3,072 of them cached (3,100 expected), 50 tokens written",
        "     SLO met",
    ]


def test_wide_output_has_all_inputs_and_whole_ids() -> None:
    decision = decided(HOME, "affinity", "a home")
    inputs = dict(decision.inputs) | {
        "mean/unforeseen_share": DecisionInput(0.0101),
        "mean/non_home_price": DecisionInput(9.72),
        f"{HOME}/indexed_tokens": DecisionInput(3_000.0),
    }
    detailed = Decision(HOME, "affinity", DecisionText("a home", decision.rejected, inputs), 0.5)
    shown = decision_out(logged([record(1, detailed)], None))
    plain, wide = "\n".join(render_decision(shown)), "\n".join(render_decision(shown, wide=True))
    assert "mean backlog 310ms; all numbers as of that moment" in plain
    assert HOME in wide
    for text_of_input in ("unforeseen_share 1.0 %", "non_home_price 9.7", "indexed_tokens"):
        assert text_of_input in wide
        assert text_of_input.partition(" ")[0] not in plain


def test_a_missed_slo_names_the_missed_targets() -> None:
    objectives = api.ObjectivesOut(ttft_seconds=5.0, ttft_per_kilo_token_seconds=0.5, itl_seconds=0.01)
    outcome = ended(ttft_seconds=8.2, itl_mean_seconds=0.02, prompt_tokens=2_000, within_objective=False)
    shown = decision_out(logged([record(1, decided(HOME, "affinity", "a home"))], outcome))
    assert render_decision(shown)[-1] == "     SLO missed"
    assert render_decision(shown, objectives=objectives)[-1] == (
        "     SLO missed: TTFT 8.2s, target 6s; TPOT 20ms, target 10ms (spec.slo of the model)"
    )


def test_a_wait_for_an_engine_is_told_apart_from_the_gateways_own_time() -> None:
    lines = text(record(1, decided(HOME, "affinity", "a home")), outcome=ended(queued_seconds=3.06, ttft_seconds=3.4))
    assert (
        "     3.06s in the gateway's queue for an engine, first token after 3.4s, 20ms between tokens, "
        "the gateway itself took 84us" in lines
    )


def test_input_ages_are_shown() -> None:
    lines = text(record(1, decided(HOME, "affinity", "a home", age=0.8)), outcome=None)
    assert any("500ms (800ms ago)" in line for line in lines)
    assert lines[-3] == "     mean backlog 310ms (800ms ago)"
    assert lines[-1] == "outcome: it is still running"


def test_retry_shows_why_the_first_attempt_failed() -> None:
    lines = text(
        record(1, decided(HOME, "affinity", "a home")),
        record(2, decided(OTHER, "retry-1", "refused; then affinity: a home")),
        outcome=ended(attempts=2, failures=((HOME, "refused"),), overhead_seconds=None),
    )
    assert "     ended before its first byte: refused" in lines
    assert lines.index("     ended before its first byte: refused") < lines.index(
        "attempt 2 → main-1 by the rule retry-1"
    )
    assert "outcome: status 200, after 1.5s, 2 attempts" in lines


def test_continued_stream_is_shown() -> None:
    lines = text(
        record(1, decided(HOME, "affinity", "a home")),
        record(2, decided(OTHER, CONTINUATION_RULE, "continued after cut; affinity: a home")),
        outcome=ended(attempts=2, break_seconds=0.4, recomputed_tokens=1_200),
    )
    assert "outcome: status 200, after 1.5s, 2 attempts, the rest of the stream came from another engine" in lines
    assert any("a pause of 400ms at the break, 1,200 tokens computed again" in line for line in lines)
    broken = text(record(1, decided(HOME, "affinity", "a home")), outcome=ended(error="cut", not_continued="grammar"))
    assert any(line.endswith("no engine could continue the stream (grammar)") for line in broken)


def test_prefill_and_decode_of_a_handoff_are_shown_once() -> None:
    leg = PrefillAttempt(HOME, decided(HOME, "affinity", "a home for prefill"), 0.0, 0.084, "ok")
    words = "prefill on main-0 (affinity: a home for prefill) in 84 ms"
    story = HandoffRecord("done", "none", words, 0.085, [leg])
    lines = text(record(1, decided(OTHER, "load", f"{words}; cheaper"), story), outcome=ended())
    assert lines[2:5] == [
        "prefill → decode: done, 85ms before a decode engine was chosen",
        "  prefill on main-0 by the rule affinity: ok after 84ms",
        "     a home for prefill",
    ]
    assert lines[lines.index("attempt 1 → main-1 by the rule load") + 1] == "     cheaper"


def test_prefill_placement_shows_both_predicted_ttfts() -> None:
    inputs = {"longest_step_seconds": DecisionInput(0.12), f"{HOME}/predicted_ttft_seconds": DecisionInput(0.5)}
    why = "the longest step of main-1 would take 120ms, over 90ms"
    where = Decision(HOME, "step-full", DecisionText(why, (RejectedCandidate(OTHER, why),), inputs))
    leg = PrefillAttempt(HOME, decided(HOME, "affinity", "a home for prefill"), 0.0, 0.084, "ok")
    story = HandoffRecord("done", "step-full", "prefill on main-0 in 84 ms", 0.085, [leg], where)
    lines = text(record(1, decided(OTHER, "load", "cheaper"), story), outcome=ended())
    assert lines[2:5] == [
        "prefill → decode: done (step-full), 85ms before a decode engine was chosen",
        "  computed on main-0 by the rule step-full",
        f"     {why}",
    ]
    assert "  prefill on main-0 by the rule affinity: ok after 84ms" in lines


def test_bypassed_handoff_shows_the_reason() -> None:
    story = HandoffRecord("bypassed", "short", "no hand-off: about 7 tokens to compute, under 1024")
    lines = text(record(1, decided(HOME, "affinity", "a home"), story), outcome=ended(status=502, error="cut"))
    assert lines[2:4] == [
        "prefill → decode: bypassed (short)",
        "  no hand-off: about 7 tokens to compute, under 1024",
    ]
    assert "outcome: status 502 (cut), after 1.5s" in lines


def test_handoff_that_failed_at_decode_shows_both_choices() -> None:
    story = HandoffRecord(
        "failed", "decode-status-500", "the hand-off from P0 failed on main-0 (status-500), plain now"
    )
    lines = text(
        record(1, decided(HOME, "affinity", "prefill on P0; a home"), story),
        record(1, decided(HOME, "affinity", f"{story.message}; a home"), story),
        record(2, decided(OTHER, "retry-1", "status-503; then affinity: a home"), story),
        outcome=ended(attempts=2, failures=((HOME, "status-503"),)),
    )
    ends = [line.strip() for line in lines if "ended before" in line or line.startswith("attempt")]
    assert ends == [
        "attempt 1 → main-0 by the rule affinity",
        "ended before its first byte: the KV transfer failed, which does not count as an attempt",
        "attempt 1 → main-0 by the rule affinity",
        "ended before its first byte: status-503",
        "attempt 2 → main-1 by the rule retry-1",
    ]
    assert lines[2] == "prefill → decode: failed (decode-status-500)"


def test_client_disconnect_and_unrouted_request_are_shown() -> None:
    nowhere = Decision(None, "none", DecisionText("every ready instance was tried"))
    lines = text(record(1, nowhere), outcome=ended(status=499, error="client-gone", client_disconnected=True))
    assert "attempt 1 → nowhere by the rule none" in lines
    assert "outcome: status 499 (client-gone), the client left, after 1.5s" in lines


# --- the command --------------------------------------------------------------------------------------------------------


def explain(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_program("explain", *arguments, **environment)


def gateway() -> CannedServer:
    shown = msgspec.json.encode(
        decision_out(logged([record(1, decided(HOME, "affinity", "a home"))], ended()))
    ).decode()
    return CannedServer(
        {
            "/api/decisions": CannedResponse([f'{{"decisions": [{shown}]}}'.encode()]),
            "/api/decisions/req-1": CannedResponse([shown.encode()]),
            "/api/decisions/nobody": NOT_KNOWN,
            "/api/decisions/a%2Fb%3Fc": NOT_KNOWN,
        }
    )


@pytest.mark.parametrize("named", [("req-1",), ()])
def test_explain_takes_an_id_and_defaults_to_the_last_request(named: tuple[str, ...]) -> None:
    with gateway() as server:
        done = explain("request", *named, "--manage", server.url, FAIRLEAD_MANAGE_TOKEN="secret")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("request req-1 · to chat/llama")
    assert "√ main-0" in done.stdout
    assert {asked.headers["authorization"] for asked in server.requests} == {"Bearer secret"}


def test_json_output_is_the_management_answer() -> None:
    with gateway() as server:
        done = explain("request", "req-1", "--manage", server.url, "-o", "json")
    assert done.returncode == 0, done.stderr
    assert msgspec.json.decode(done.stdout)["choices"][0]["rule"] == "affinity"


def test_the_id_of_an_answer_finds_its_request() -> None:
    own = "req-375d0a1b-0123456789abcdef"
    outcome = ended(within_objective=False, ttft_seconds=8.0)
    shown = msgspec.json.encode(
        decision_out(logged([record(1, decided(HOME, "affinity", "a home"))], outcome))
    ).decode()
    fleet = (
        '{"models": [{"key": "chat/llama", "namespace": "chat", "name": "llama", "objectives": {"ttft_seconds": 5}}]}'
    )
    pages = {
        f"/api/decisions/chatcmpl-{own}": NOT_KNOWN,
        f"/api/decisions/{own}": CannedResponse([shown.encode()]),
        "/api/fleet": CannedResponse([fleet.encode()]),
    }
    with CannedServer(pages) as server:
        done = explain("request", f"chatcmpl-{own}", "--manage", server.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "SLO missed: TTFT 8s, target 5s (spec.slo of the model)" in done.stdout


@pytest.mark.parametrize("request_id", ["nobody", "a/b?c"])
def test_unknown_request_exits_1_with_possible_causes(request_id: str) -> None:
    with gateway() as server:
        done = explain("request", request_id, "--manage", server.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"no decision for request {request_id!r}" in done.stderr
    assert "x-fairlead-decision" in done.stderr
    assert done.stderr.count("\n") == 1


def test_gateway_without_requests_exits_1() -> None:
    with CannedServer({"/api/decisions": CannedResponse([b'{"decisions": []}'])}) as server:
        done = explain("request", "--manage", server.url)
    assert done.returncode == 1
    assert "no request was routed yet at" in done.stderr


def test_closed_address_exits_3() -> None:
    with gateway() as server:
        gone = server.url
    done = explain("request", "req-1", "--manage", gone)
    assert done.returncode == 3
    assert "does not answer" in done.stderr


def test_foreign_page_is_not_taken_for_an_unknown_request() -> None:
    with CannedServer({"/api/decisions/req-1": CannedResponse([b"<html>not found</html>"], 404)}) as server:
        done = explain("request", "req-1", "--manage", server.url)
    assert done.returncode == 3
    assert "is not Fairlead's management API" in done.stderr


def would(
    prompt: Path, *arguments: str, choices: int = 1, fallbacks: str = "[]"
) -> tuple[subprocess.CompletedProcess[str], CannedServer]:
    records = [record(1, decided(HOME, "affinity", "a home"))] * choices
    shown = msgspec.json.encode(decision_out(logged(records, None))).decode()
    body = f'{{"decision": {shown}, "workers": 4, "agreeing": 3, "fallbacks": {fallbacks}}}'.encode()
    with CannedServer({"/api/route": CannedResponse([body])}) as server:
        return explain("route", *arguments, "-f", str(prompt), "--manage", server.url), server


def test_route_preview_shows_the_agreement_of_workers(tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("what is a fairlead?")
    done, server = would(prompt, "-m", "llama")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "a request to chat/llama · about 4,100 prompt tokens · nothing was sent"
    assert lines[2] == "→ main-0 by the rule affinity"
    assert lines[-1] == "3 of 4 workers would choose this instance"
    (asked,) = server.requests
    assert msgspec.json.decode(asked.body) == {
        "messages": [{"role": "user", "content": "what is a fairlead?"}],
        "model": "llama",
    }


def test_route_preview_names_the_tenant_that_would_send_it(tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("what is a fairlead?")
    done, server = would(prompt, "-m", "llama", "--tenant", "acme")
    assert done.returncode == 0
    (asked,) = server.requests
    assert asked.path == "/api/route?path=%2Fv1%2Fchat%2Fcompletions&tenant=acme"


def test_route_preview_sends_headers_and_shows_fallbacks(tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("what is a fairlead?")
    fallbacks = (
        '[{"model": "chat/b", "when": ["NoCapacity", "Unavailable"]}, '
        '{"model": "chat/c", "when": ["Refused"], "after": "chat/b"}]'
    )
    done, server = would(
        prompt, "-m", "llama", "--header", "x-canary: yes", "--header", "x-team:a", fallbacks=fallbacks
    )
    assert (done.returncode, done.stderr) == (0, "")
    (asked,) = server.requests
    assert asked.path.endswith("&header=x-canary%3A+yes&header=x-team%3Aa")
    assert done.stdout.splitlines()[1:3] == [
        "fallback: chat/b after NoCapacity or Unavailable",
        "fallback: chat/c after Refused of chat/b",
    ]


def test_header_without_a_name_is_refused(tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("what is a fairlead?")
    done, _ = would(prompt, "-m", "llama", "--header", "yes")
    assert done.returncode == 2
    assert "--header" in done.stderr


def test_file_with_a_json_request_is_sent_unchanged(tmp_path: Path) -> None:
    prompt = tmp_path / "request.json"
    prompt.write_text('{"model": "llama", "prompt": "once", "max_tokens": 5}')
    done, server = would(prompt)
    assert done.returncode == 0
    (asked,) = server.requests
    assert (asked.path, msgspec.json.decode(asked.body)["prompt"]) == ("/api/route?path=%2Fv1%2Fcompletions", "once")


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ('"messages": []', "/v1/chat/completions"),
        ('"messages": [], "tools": [{"type": "function", "function": {}}]', "/v1/chat/completions"),
        ('"messages": [], "system": "be brief"', "/v1/messages"),
        ('"messages": [], "tools": [{"name": "ls", "input_schema": {}}]', "/v1/messages"),
        ('"input": ["a", "b"]', "/v1/embeddings"),
        ('"input": "a", "instructions": "be brief"', "/v1/responses"),
        ('"input": [{"role": "user", "content": "a"}]', "/v1/responses"),
    ],
)
def test_the_fields_of_a_request_name_its_endpoint(tmp_path: Path, fields: str, path: str) -> None:
    request = tmp_path / "request.json"
    request.write_text(f'{{"model": "llama", {fields}}}')
    assert build_request(str(request), None)[0] == path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-f", "prompt.txt"), "the request names no model"),
        (("-m", "llama", "-f", "nothing.txt"), "nothing.txt cannot be read"),
        (("-m", "llama"), "--file"),
    ],
)
def test_incomplete_route_query_names_the_missing_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompt.txt").write_text("once")
    with gateway() as server:
        done = explain("route", *arguments, "--manage", server.url)
    assert done.returncode == 2
    assert words in done.stderr


def test_refused_route_query_shows_the_gateways_message(tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("once")
    with CannedServer({"/api/route": CannedResponse([b'{"error": {"message": "no model \'llama\'"}}'], 404)}) as server:
        done = explain("route", "-m", "llama", "-f", str(prompt), "--manage", server.url)
    assert done.returncode == 1
    assert "the gateway would reject this request (404): no model 'llama'" in done.stderr


STATS = (
    b'{"version": "1", "models": {"chat/big": {}, "chat/next": {"shadows": [{"original": "chat/big", "compared": 8, '
    b'"outcomes": {"answered": 7, "failed": 1, "no-room": 2}, '
    b'"copies": {"errors": 1, "ttft_mean_seconds": 0.21, "tpot_mean_seconds": 0.024, "output_tokens_mean": 312.4}, '
    b'"originals": {"errors": 0, "ttft_mean_seconds": 0.18, "tpot_mean_seconds": 0.02, "output_tokens_mean": 290}}]}}}'
)


def run(capsys: pytest.CaptureFixture[str], content: bytes, *arguments: str) -> tuple[int, str]:
    with CannedServer({"/api/stats": CannedResponse([content])}) as server:
        words = ["explain", "shadow", *arguments, "--manage", server.url]
        code = int(build_app()(words, result_action="return_value"))
    shown = capsys.readouterr()
    return code, shown.out + shown.err


@pytest.mark.parametrize("arguments", [(), ("-m", "next"), ("-m", "chat/next")])
def test_comparison_is_shown_with_both_sides_and_their_difference(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = run(capsys, STATS, *arguments)
    assert code == 0
    assert text.splitlines() == [
        "chat/next answers copies of requests for chat/big",
        "8 of 10 compared; without an answer: no-room 2",
        "                copy     original",
        "errors          12.5 %   0.0 %",
        "TTFT            210ms    180ms      +17 %",
        "TPOT            24ms     20ms       +20 %",
        "answer tokens   312      290        +8 %",
    ]


def test_model_without_copies_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys, STATS, "-m", "big")
    assert code == 1
    assert "no request was copied to big at" in text
    assert run(capsys, b'{"models": {}}')[0] == 1


def test_json_has_all_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys, STATS, "-o", "json")
    assert code == 0
    assert '"compared": 8' in text


def test_unknown_values_are_dashes_and_gateways_are_named() -> None:
    lines = render_comparison("chat/next", ShadowOut(original="chat/big", outcomes={"too-many": 3}), "gw-1")
    assert lines[0].endswith("chat/big, at gw-1")
    assert lines[3].split() == ["errors", "–", "–"]
