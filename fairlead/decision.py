"""Decisions: a choice with its reason, returned by every deciding function of Fairlead.

Response headers, the decision log, `/why` in `fairlead chat` and the status page show decisions. A
decision therefore holds enough to redo the choice by hand. It never holds a prompt or a key.

Why: most decisions are never read. A decision can carry an `Explanation`, which keeps the numbers
and builds sentences and tables only on request.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

_NO_INPUTS: Mapping[str, "DecisionInput"] = MappingProxyType({})


@dataclass(slots=True)
class DecisionInput:
    """A number that a choice was based on. `age_seconds` is None for a value computed for this
    choice.
    """

    value: float | None
    age_seconds: float | None = None


@dataclass(slots=True)
class RejectedCandidate:
    """A candidate that was not chosen, with the reason as text."""

    id: str
    why: str


class Explanation(Protocol):
    """The lazily built explanation of a decision. Each method is called at most once."""

    def reason(self) -> str:
        """Returns the reason in one sentence."""

    def rejected(self) -> tuple[RejectedCandidate, ...]:
        """Returns the candidates that were not chosen."""

    def inputs(self) -> Mapping[str, DecisionInput]:
        """Returns the numbers used, by name."""


class DecisionText:
    """An explanation that is already text."""

    __slots__ = ("_inputs", "_reason", "_rejected")

    def __init__(
        self,
        reason: str,
        rejected: tuple[RejectedCandidate, ...] = (),
        inputs: Mapping[str, DecisionInput] = _NO_INPUTS,
    ) -> None:
        self._reason = reason
        self._rejected = rejected
        self._inputs = inputs

    def reason(self) -> str:
        return self._reason

    def rejected(self) -> tuple[RejectedCandidate, ...]:
        return self._rejected

    def inputs(self) -> Mapping[str, DecisionInput]:
        return self._inputs


class Decision:
    """A choice and its reason. Treat it as immutable.

    chosen: None if there was nothing to choose from.
    rule: name of the rule that decided, from a closed list.
    cost_seconds: expected cost in seconds of engine time; None if the rule computes none.
    home: whether the chosen candidate is a home of the prompt.
    matched_tokens: prompt tokens that the chosen candidate should have cached.
    ttft_seconds: predicted time to the first token.
    loaded: those of `matched_tokens` that it loads from its CPU memory, its disk and a shared
        store; None: none.
    source: instance from whose cache part of the prompt should be copied. None if computing is
        cheaper.

    `home`, `matched_tokens` and `ttft_seconds` are None if the rule did not consider them. Keys of
    `inputs` look like `"pod-3/backlog_seconds"`.

    Why not frozen: a frozen dataclass is expensive to build.
    """

    __slots__ = (
        "_explanation",
        "_inputs",
        "_reason",
        "_rejected",
        "chosen",
        "cost_seconds",
        "home",
        "loaded",
        "matched_tokens",
        "rule",
        "source",
        "ttft_seconds",
    )

    def __init__(
        self,
        chosen: str | None,
        rule: str,
        explanation: Explanation | None = None,
        cost_seconds: float | None = None,
        home: bool | None = None,
        matched_tokens: float | None = None,
        ttft_seconds: float | None = None,
        source: str | None = None,
    ) -> None:
        self.chosen = chosen
        self.rule = rule
        self.cost_seconds = cost_seconds
        self.home = home
        self.matched_tokens = matched_tokens
        self.ttft_seconds = ttft_seconds
        self.source = source
        self.loaded: tuple[float, float, float] | None = None
        self._reason: str | None = None
        self._rejected: tuple[RejectedCandidate, ...] | None = None
        self._inputs: Mapping[str, DecisionInput] | None = None
        self._explanation = explanation

    @property
    def reason(self) -> str:
        """The reason in one sentence."""
        if self._reason is not None:
            return self._reason
        reason = self._explanation.reason() if self._explanation is not None else ""
        if not isinstance(self._explanation, _ExplanationAfter):
            self._reason = reason
        return reason

    @property
    def rejected(self) -> tuple[RejectedCandidate, ...]:
        """The candidates that were not chosen."""
        if self._rejected is None:
            self._rejected = self._explanation.rejected() if self._explanation is not None else ()
        return self._rejected

    @property
    def inputs(self) -> Mapping[str, DecisionInput]:
        """The numbers used, by name."""
        if self._inputs is None:
            self._inputs = self._explanation.inputs() if self._explanation is not None else _NO_INPUTS
        return self._inputs

    def after(self, describe: Callable[[], str]) -> "Decision":
        """Returns the same choice; its reason begins with the text that `describe` returns.

        Why: both texts are built on request only. That of `describe` is built each time, since what
        it describes may go on.
        """
        return Decision(
            self.chosen,
            self.rule,
            _ExplanationAfter(describe, self),
            self.cost_seconds,
            self.home,
            self.matched_tokens,
            self.ttft_seconds,
            self.source,
        )

    def with_text(
        self,
        *,
        rule: str | None = None,
        reason: str | None = None,
        rejected: tuple[RejectedCandidate, ...] | None = None,
    ) -> "Decision":
        """Returns the same choice with another rule, reason or list of rejected candidates."""
        changed = Decision(
            self.chosen,
            rule or self.rule,
            self._explanation,
            self.cost_seconds,
            self.home,
            self.matched_tokens,
            self.ttft_seconds,
            self.source,
        )
        changed._reason = self.reason if reason is None else reason
        changed._rejected = self.rejected if rejected is None else rejected
        changed._inputs = self._inputs
        return changed

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Decision):
            return NotImplemented
        return self._comparison_key() == other._comparison_key()

    def __repr__(self) -> str:
        return f"Decision({self.chosen!r}, {self.rule!r}, {self.reason!r})"

    def _comparison_key(self) -> tuple[object, ...]:
        return self.chosen, self.rule, self.reason, self.rejected, dict(self.inputs), self.cost_seconds


class _ExplanationAfter:
    """The explanation of a decision that was made after something else had happened."""

    __slots__ = ("_decision", "_describe")

    def __init__(self, describe: Callable[[], str], decision: Decision) -> None:
        self._describe = describe
        self._decision = decision

    def reason(self) -> str:
        return f"{self._describe()}; then {self._decision.rule}: {self._decision.reason}"

    def rejected(self) -> tuple[RejectedCandidate, ...]:
        return self._decision.rejected

    def inputs(self) -> Mapping[str, DecisionInput]:
        return self._decision.inputs
