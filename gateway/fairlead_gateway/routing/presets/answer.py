"""How a published rule says what it chose: the numbers are kept, and written out when somebody asks."""

from collections.abc import Mapping, Sequence
from typing import Final

from fairlead.decision import Decision, Input, Rejected
from fairlead_gateway.routing.presets.question import Option, Question

_PLAIN: Final = "{:.6g}"


class _Account:
    """The options, what each scored by the rule, and why. Where ``scores`` is shorter than the options, the rest was not scored."""

    __slots__ = ("_best", "_options", "_reason", "_scores", "_what")

    def __init__(
        self, options: list[Option], best: Option, reason: str, what: str, scores: Mapping[str, float]
    ) -> None:
        self._options = options
        self._best = best
        self._reason = reason
        self._what = what
        self._scores = scores

    def reason(self) -> str:
        """As the rule said it."""
        return self._reason

    def rejected(self) -> tuple[Rejected, ...]:
        """The others, by what they scored."""
        return tuple(Rejected(item.id, self._why_not(item.id)) for item in self._options if item is not self._best)

    def inputs(self) -> Mapping[str, Input]:
        """All that some rule looks at, and the scores."""
        table: dict[str, Input] = {}
        for item in self._options:
            table[f"{item.id}/inflight"] = Input(float(item.inflight))
            table[f"{item.id}/waiting"] = Input(float(item.waiting))
            table[f"{item.id}/backlog_seconds"] = Input(item.backlog_seconds)
            table[f"{item.id}/inflight_tokens"] = Input(item.inflight_tokens)
            table[f"{item.id}/matched_tokens"] = Input(item.matched_tokens)
            table[f"{item.id}/predicted_ttft_seconds"] = Input(item.ttft_seconds)
            if item.id in self._scores:
                table[f"{item.id}/{self._what}"] = Input(self._scores[item.id])
        return table

    def _why_not(self, instance: str) -> str:
        mine, best = self._scores.get(instance), self._scores.get(self._best.id)
        if mine is None:
            return "not looked at by this rule"
        if best is None:
            return f"{self._what} {_PLAIN.format(mine)}"
        if mine == best:
            return f"{self._what} is as good ({_PLAIN.format(mine)}); the tie went elsewhere"
        return f"{self._what} {_PLAIN.format(mine)} against {_PLAIN.format(best)}"


def chosen(
    question: Question, best: Option, rule: str, reason: str, *, what: str, scores: Mapping[str, float]
) -> Decision:
    """``best`` by ``rule``. ``scores`` is what the rule made of each option that it looked at, under the name ``what``."""
    return Decision(
        best.id,
        rule,
        home=best.id in question.homes if question.homes else None,
        matched_tokens=best.matched_tokens,
        ttft_seconds=best.ttft_seconds,
        account=_Account(question.options, best, reason, what, scores),
    )


def fewest(question: Question, options: Sequence[Option]) -> Option:
    """The one with the fewest requests in flight; of equals the one that the lot falls on."""
    best = options[0]
    for item in options:
        if item.inflight < best.inflight or (
            item.inflight == best.inflight and question.lot(item.id) < question.lot(best.id)
        ):
            best = item
    return best
