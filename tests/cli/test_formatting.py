"""Numbers for people, the banner, and a decision in words."""

from dataclasses import replace

from fairlead import management_api as api
from fairlead_cli import formatting
from fairlead_cli.chat.command import summarize_decision
from fairlead_cli.local.view.live_view import StackSummary, headline, plain_lines

FACTS = StackSummary("http://127.0.0.1:8000", "http://127.0.0.1:8001", ("tiny",), 8, ("sim",), 1.23, ("a note",))


def test_numbers_are_short_and_unknown_is_never_zero() -> None:
    assert (
        formatting.format_seconds(None)
        == formatting.format_share(None)
        == formatting.format_count(None)
        == formatting.format_rate(None)
        == "–"
    )
    assert [formatting.format_count(n) for n in (0, 999, 1_000, 12_345, 4_000_000)] == ["0", "999", "1k", "12.3k", "4M"]
    assert formatting.format_share(0.434) == "43 %"
    assert formatting.pluralize(1, "engine") == "1 engine"
    assert formatting.pluralize(8, "engine") == "8 engines"


def test_share_below_one_is_never_100_percent() -> None:
    assert [formatting.format_share(value) for value in (None, 0.434, 0.99, 0.9949, 0.9999, 1.0)] == [
        "–",
        "43 %",
        "99 %",
        "99.5 %",
        "99.9 %",
        "100 %",
    ]


def test_exactly_one_plain_line_begins_with_ready_and_names_both_addresses() -> None:
    lines = plain_lines(FACTS)
    assert [line for line in lines if line.startswith("ready")] == [
        "ready http://127.0.0.1:8000 manage http://127.0.0.1:8001"
    ]
    assert any("curl -sN http://127.0.0.1:8000/v1/chat/completions" in line for line in lines)
    assert any('base_url="http://127.0.0.1:8000/v1"' in line for line in lines)
    assert any("a note" in line for line in lines)


def test_examples_of_the_banner_have_a_key_where_clients_need_one() -> None:
    without, with_key = "\n".join(plain_lines(FACTS)), "\n".join(plain_lines(replace(FACTS, needs_key=True)))
    assert "authorization" not in without
    assert '-H "authorization: Bearer $FAIRLEAD_API_KEY" \\' in with_key
    assert 'api_key=os.environ["FAIRLEAD_API_KEY"])' in with_key


def test_headline_names_models_and_engines() -> None:
    assert headline(FACTS) == "Fairlead serves tiny on 8 simulated engines, 1.23s after its start"


def test_banner_names_the_autoscaler_when_pools_are_scaled() -> None:
    assert not any("autoscaler" in line for line in plain_lines(FACTS))
    scaled = plain_lines(replace(FACTS, engines=0, autoscaler="http://127.0.0.1:8002"))
    assert "  autoscaler   http://127.0.0.1:8002/metrics; fairlead explain scaling" in scaled
    assert "  Fairlead serves tiny with simulated engines that start when asked, 1.23s after its start" in scaled


def test_decision_summary_has_candidates_and_outcome() -> None:
    number = api.NumberOut
    summary = summarize_decision(
        api.DecisionOut(
            request_id="req-1",
            model="default/tiny",
            prompt_tokens=4_100.0,
            choices=[
                api.ChoiceOut(
                    instance="main-3/40001/0",
                    rule="slo-spill",
                    reason="its homes would miss the objective",
                    candidates=[
                        api.CandidateOut(
                            id="main-3/40001/0",
                            chosen=True,
                            inputs={"backlog_seconds": number(0.2), "matched_tokens": number(3_584)},
                        ),
                        api.CandidateOut(id="main-1/40002/0", why="6 s until a first token"),
                    ],
                )
            ],
            outcome=api.OutcomeOut(
                status=200,
                attempts=2,
                duration_seconds=1.0,
                ttft_seconds=0.21,
                itl_mean_seconds=0.04,
                prompt_tokens=4_096,
                cached_tokens=3_584,
                output_tokens=16,
            ),
        )
    )
    assert summary == [
        "request req-1 to tiny, about 4,100 prompt tokens",
        "went to main-3, by the rule slo-spill: its homes would miss the objective",
        "  √ main-3  3.6k tokens cached, backlog 200ms",
        "  · main-1  6 s until a first token",
        "what happened: first token after 210ms, 3,584 of 4,096 prompt tokens came from the cache, 16 tokens written, "
        "2 engines were tried",
    ]


def test_running_request_is_shown_as_running() -> None:
    assert summarize_decision(api.DecisionOut(request_id="r", model="default/tiny"))[-1] == "it is still running"
