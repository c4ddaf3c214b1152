"""The names of the parameters of an answer, by dialect."""

from dataclasses import dataclass
from typing import Final

SAMPLING: Final = ("temperature", "top_p", "top_k")
ALL_SAMPLING: Final = (*SAMPLING, "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class BodyForm:
    """The names of parameters in the bodies of a dialect that generates.

    limits: the names of the limit of an answer; an engine uses the first one that is set. The last
        one is used where the route adds a limit.
    absent_limit: the number of tokens that engines apply without a limit; None: the context of the
        model.
    sampling: the names of parameters that may have defaults.
    counts: the names of the number of answers.
    """

    limits: tuple[str, ...]
    sampling: tuple[str, ...]
    counts: tuple[str, ...] = ()
    absent_limit: int | None = None
    has_min_tokens: bool = False

    @property
    def limit(self) -> str:
        return self.limits[-1]
