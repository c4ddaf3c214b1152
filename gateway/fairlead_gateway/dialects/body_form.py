"""The names of the parameters of an answer, by dialect."""

from typing import Final

SAMPLING: Final = ("temperature", "top_p", "top_k")
ALL_SAMPLING: Final = (*SAMPLING, "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")


class BodyForm:
    """The names of parameters in the bodies of a dialect that generates.

    limits: the names of the limit of an answer; an engine uses the first one that is set.
    limit: the name that is used where the route adds a limit.
    absent_limit: the number of tokens that engines apply without a limit; None: the context of the
        model.
    sampling: the names of parameters that may have defaults.
    counts: the names of the number of answers.
    """

    __slots__ = ("absent_limit", "counts", "has_min_tokens", "limit", "limits", "sampling")

    def __init__(
        self,
        limits: tuple[str, ...],
        sampling: tuple[str, ...],
        counts: tuple[str, ...] = (),
        *,
        absent_limit: int | None = None,
        has_min_tokens: bool = False,
    ) -> None:
        self.limits = limits
        self.limit: str = limits[-1]
        self.sampling = sampling
        self.counts = counts
        self.absent_limit = absent_limit
        self.has_min_tokens = has_min_tokens
