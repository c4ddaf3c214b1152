"""Decisions: their texts are built on request, and once."""

from collections.abc import Mapping

from fairlead.decision import Decision, DecisionInput, RejectedCandidate


class CountedExplanation:
    """An explanation that counts how often its parts are built."""

    def __init__(self) -> None:
        self.count = 0

    def reason(self) -> str:
        self.count += 1
        return "it is the least busy"

    def rejected(self) -> tuple[RejectedCandidate, ...]:
        self.count += 1
        return (RejectedCandidate("b", "busy"),)

    def inputs(self) -> Mapping[str, DecisionInput]:
        self.count += 1
        return {"a/backlog_seconds": DecisionInput(0.5)}


def test_decision_after_a_wait_builds_its_texts_on_request() -> None:
    explanation, described = CountedExplanation(), []

    def describe() -> str:
        described.append(1)
        return "queued for 1.0 s"

    decision = Decision("a", "load", explanation, 1.0, True, 2.0, 3.0, "c").after(describe)
    assert (explanation.count, described) == (0, [])
    for _ in range(2):
        assert decision.reason == "queued for 1.0 s; then load: it is the least busy"
        assert decision.rejected == (RejectedCandidate("b", "busy"),)
        assert decision.inputs == {"a/backlog_seconds": DecisionInput(0.5)}
    assert (explanation.count, described) == (3, [1, 1])
    fields = (decision.chosen, decision.rule, decision.cost_seconds, decision.home, decision.matched_tokens)
    assert fields == ("a", "load", 1.0, True, 2.0)
    assert (decision.ttft_seconds, decision.source) == (3.0, "c")


def test_what_a_decision_waits_for_is_described_as_it_is_now() -> None:
    texts = ["loading"]
    decision = Decision("a", "load", CountedExplanation()).after(lambda: texts[-1])
    assert decision.reason.startswith("loading; then load: ")
    texts.append("loaded in 1 s")
    assert decision.reason.startswith("loaded in 1 s; then load: ")
    assert decision.with_text(reason="retried").reason == "retried"
