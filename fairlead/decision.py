"""A choice with its reason: what every deciding function of Fairlead returns.

A Decision never holds a prompt or a key; ids, counts and seconds only. It is what headers, the decision log,
``/why`` in ``fairlead chat`` and the status page show, so it must be enough to redo the choice by hand.

Most decisions are never looked at. So a Decision may be made with an ``Account``, which keeps the numbers that decided and
writes out sentences and tables when somebody asks; what the request's way itself needs of the chosen candidate stands beside.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

_NO_INPUTS: Mapping[str, "DecisionInput"] = MappingProxyType({})


@dataclass(slots=True)
class DecisionInput:
    """One number that a choice was made from, and how old it was (seconds; None = computed just then)."""

    value: float | None
    age_seconds: float | None = None


@dataclass(slots=True)
class RejectedCandidate:
    """A candidate that was not taken, and why, in words."""

    id: str
    why: str


class Explanation(Protocol):
    """Writes out why a choice was made; asked at most once for each."""

    def reason(self) -> str:
        """One sentence."""
        ...

    def rejected(self) -> tuple[RejectedCandidate, ...]:
        """The candidates that were not taken."""
        ...

    def inputs(self) -> Mapping[str, DecisionInput]:
        """The numbers used, by name."""
        ...


class Decision:
    """``chosen`` is None when nothing could be chosen; ``rule`` is the closed-list name of the rule that decided.

    ``cost_seconds`` is what the choice is expected to cost in engine time; ``inputs`` maps a name such as
    ``"pod-3/backlog_seconds"`` to the number used. Of the chosen candidate: whether it is a ``home`` of the prompt, the
    prompt's ``matched_tokens`` that it should hold, and the seconds to its first token (``ttft_seconds``); None where the
    rule that decided did not look at them. ``source`` is the instance whose cache it should get a part of the prompt from, None
    where computing that is cheaper. Nobody changes a Decision; it is not frozen because that makes it dear to build.
    """

    __slots__ = (
        "_explanation",
        "_inputs",
        "_reason",
        "_rejected",
        "chosen",
        "cost_seconds",
        "home",
        "matched_tokens",
        "rule",
        "source",
        "ttft_seconds",
    )

    def __init__(
        self,
        chosen: str | None,
        rule: str,
        reason: str | None = None,
        rejected: tuple[RejectedCandidate, ...] | None = None,
        inputs: Mapping[str, DecisionInput] | None = None,
        cost_seconds: float | None = None,
        home: bool | None = None,
        matched_tokens: float | None = None,
        ttft_seconds: float | None = None,
        explanation: Explanation | None = None,
        source: str | None = None,
    ) -> None:
        self.chosen = chosen
        self.rule = rule
        self.cost_seconds = cost_seconds
        self.home = home
        self.matched_tokens = matched_tokens
        self.ttft_seconds = ttft_seconds
        self.source = source
        self._reason = reason
        self._rejected = rejected
        self._inputs = inputs
        self._explanation = explanation

    @property
    def reason(self) -> str:
        """Why, in one sentence."""
        if self._reason is None:
            self._reason = self._explanation.reason() if self._explanation is not None else ""
        return self._reason

    @property
    def rejected(self) -> tuple[RejectedCandidate, ...]:
        """The candidates that were not taken."""
        if self._rejected is None:
            self._rejected = self._explanation.rejected() if self._explanation is not None else ()
        return self._rejected

    @property
    def inputs(self) -> Mapping[str, DecisionInput]:
        """The numbers used, by name."""
        if self._inputs is None:
            self._inputs = self._explanation.inputs() if self._explanation is not None else _NO_INPUTS
        return self._inputs

    def with_text(
        self,
        *,
        rule: str | None = None,
        reason: str | None = None,
        rejected: tuple[RejectedCandidate, ...] | None = None,
    ) -> "Decision":
        """The same choice in other words."""
        return Decision(
            self.chosen,
            rule or self.rule,
            self.reason if reason is None else reason,
            self.rejected if rejected is None else rejected,
            self._inputs,
            self.cost_seconds,
            self.home,
            self.matched_tokens,
            self.ttft_seconds,
            self._explanation,
            self.source,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Decision):
            return NotImplemented
        return self._comparison_key() == other._comparison_key()

    def __repr__(self) -> str:
        return f"Decision({self.chosen!r}, {self.rule!r}, {self.reason!r})"

    def _comparison_key(self) -> tuple[object, ...]:
        return self.chosen, self.rule, self.reason, self.rejected, dict(self.inputs), self.cost_seconds
