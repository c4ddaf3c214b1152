"""`fairlead requests` as a command, and its table."""

import msgspec
import pytest

from fairlead import management_api as api
from fairlead_cli.explain.wait_parts import wait_parts
from fairlead_cli.requests.command import main_cause, render_requests
from fairlead_testing.cli.command_line import run_program
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer


def decision(number: int, outcome: api.OutcomeOut | None, backlog: float | None = None) -> api.DecisionOut:
    inputs = {"backlog_seconds": api.NumberOut(value=backlog)}
    chosen = api.CandidateOut(id="main-3/9004/0", chosen=True, inputs=inputs)
    choice = api.ChoiceOut(instance="main-3/9004/0", candidates=[chosen])
    return api.DecisionOut(
        f"req-{number}", "chat/llama", 1_800_000_000.0 + number, caller="acme", choices=[choice], outcome=outcome
    )


def outcome_of(**changes: object) -> api.OutcomeOut:
    known = {"status": 200, "duration_seconds": 4.0, "ttft_seconds": 2.0, "overhead_seconds": 0.02}
    return api.OutcomeOut(**{**known, **changes})  # type: ignore[arg-type]  # a test's shorthand


def test_the_parts_of_a_wait_add_up_and_the_longest_is_first() -> None:
    parts = wait_parts(decision(1, outcome_of(queued_seconds=0.5), backlog=1.2))
    assert [(part.text, round(part.seconds, 3)) for part in parts] == [
        ("requests before it at the engine (about)", 1.2),
        ("the gateway's queue for an engine", 0.5),
        ("the engine", 0.28),
        ("the gateway's own work", 0.02),
    ]
    assert sum(part.share for part in parts) == pytest.approx(1.0)


def test_an_unknown_backlog_is_no_part_of_a_wait() -> None:
    assert [part.text for part in wait_parts(decision(1, outcome_of()))] == ["the engine", "the gateway's own work"]
    assert wait_parts(decision(1, None)) == []


@pytest.mark.parametrize(
    ("outcome", "cause"),
    [
        (None, "–"),
        (outcome_of(), "99 % the engine"),
        (outcome_of(client_gone=True, error="client-gone"), "the client left"),
        (outcome_of(status=502, error="timeout"), "timeout"),
        (
            outcome_of(
                status=503, error="engines", failures=[api.FailureOut("a", "refused"), api.FailureOut("b", "cut")]
            ),
            "engines: cut, refused",
        ),
        (
            outcome_of(attempts=2, overhead_seconds=None, failures=[api.FailureOut("a", "refused")]),
            "100 % the engine, and 1 that failed before it",
        ),
        (outcome_of(ttft_seconds=None, queued_seconds=3.0), "75 % the gateway's queue for an engine"),
    ],
)
def test_the_main_cause_is_the_error_or_the_longest_part(outcome: api.OutcomeOut | None, cause: str) -> None:
    assert main_cause(decision(1, outcome)) == cause


def test_the_table_has_a_row_for_each_request() -> None:
    shown = render_requests([decision(1, outcome_of(within_objective=False)), decision(2, None)], is_wide=True)
    cells = "08:00:01 req-1 llama 200 2s 4s missed acme main-3 – – – 99 % the engine"
    assert shown.splitlines()[1].split() == cells.split()
    assert shown.splitlines()[-1] == "2 requests, 1 missed the SLO · why: fairlead explain request ID"
    assert "running" in shown.splitlines()[2]


def answered(*decisions: api.DecisionOut) -> CannedServer:
    return CannedServer({"/api/decisions": CannedResponse([msgspec.json.encode(api.DecisionsOut([*decisions]))])})


def test_the_gateway_is_asked_for_what_the_flags_select() -> None:
    with answered(decision(1, outcome_of())) as server:
        flags = ["llama", "--slow", "--tenant", "acme", "--limit", "7", "--manage", server.url]
        done = run_program("requests", *flags)
        assert (done.returncode, done.stderr) == (0, "")
        assert "req-1" in done.stdout
        assert server.requests[0].path == "/api/decisions?limit=7&model=llama&kind=slow&tenant=acme"


def test_the_slowest_come_first_and_documents_are_the_gateways_own() -> None:
    with answered(decision(1, outcome_of(ttft_seconds=1.0)), decision(2, outcome_of(ttft_seconds=3.0))) as server:
        done = run_program("requests", "--slow", "-o", "json", "--manage", server.url)
    assert [one["request_id"] for one in msgspec.json.decode(done.stdout)] == ["req-2", "req-1"]


def test_no_match_exits_1_and_wrong_flags_exit_2() -> None:
    with answered() as server:
        done = run_program("requests", "--failed", "--manage", server.url)
        assert (done.returncode, done.stdout) == (1, "")
        assert "no request matches at" in done.stderr
        both = run_program("requests", "--failed", "--slow", "--manage", server.url)
        assert both.returncode == 2
        assert "--slow and --failed exclude each other" in both.stderr
        assert run_program("requests", "--limit", "0", "--manage", server.url).returncode == 2


def test_a_list_without_a_target_says_nothing_about_one() -> None:
    assert (
        render_requests([decision(1, outcome_of())]).splitlines()[-1] == "1 request · why: fairlead explain request ID"
    )
