"""The parameters that a route sets in a body: defaults for absent ones, and caps. Pure.

A parameter that is null counts as absent. The limit of an answer has several names, which differ by
path. A cap bounds each of them, and is the limit of a request without one.
"""

from collections.abc import Callable
from math import inf
from typing import Final

from fairlead.routes.model import RequestRewrite
from fairlead_gateway.dialects.body_form import BodyForm

MAX_TOKENS: Final = "max_tokens"
_MIN_TOKENS: Final = "min_tokens"
Number = int | float
ValueReader = Callable[[str], Number | None]


class RewritePlan:
    """A rewrite, prepared for reading it with each request.

    Why: the module of `RequestRewrite` is not compiled.
    """

    __slots__ = ("_default_limit", "_defaults", "_max_answers", "_max_limit")

    def __init__(self, rewrite: RequestRewrite) -> None:
        defaults, caps = dict(rewrite.defaults), dict(rewrite.caps)
        limit, max_limit, max_answers = defaults.pop(MAX_TOKENS, None), caps.get(MAX_TOKENS), caps.get("n")
        self._default_limit: int | None = None if limit is None else int(limit)
        self._max_limit: int | None = None if max_limit is None else int(max_limit)
        self._max_answers: int | None = None if max_answers is None else int(max_answers)
        self._defaults: list[tuple[str, Number]] = list(defaults.items())

    def answer_tokens(self, limit: int | None) -> int:
        """Returns the most tokens of an answer to a request with this limit; 0 if nothing bounds
        it.
        """
        cap = self._max_limit
        if limit is None:
            limit = self._default_limit
        if limit is None:
            return 0 if cap is None else cap
        return limit if cap is None or limit < cap else cap

    def changes(self, form: BodyForm, value: ValueReader) -> dict[str, Number]:
        """Returns the parameters that change, with their new values.

        value: returns a parameter of the body; None if it is absent or null.
        """
        found = self._limit_changes(form, value)
        for name, default in self._defaults:
            if name in form.sampling and value(name) is None:
                found[name] = default
        if self._max_answers is not None:
            for name in form.counts:
                answers = value(name)
                if answers is not None and answers > self._max_answers:
                    found[name] = self._max_answers
        return found

    def _limit_changes(self, form: BodyForm, value: ValueReader) -> dict[str, Number]:
        found: dict[str, Number] = {}
        max_limit, is_limited = self._max_limit, False
        for name in form.limits:
            limit = value(name)
            if limit is not None:
                is_limited = True
                if max_limit is not None and limit > max_limit:
                    found[name] = max_limit
        minimum = value(_MIN_TOKENS) if form.has_min_tokens else None
        if not is_limited:
            new_limit: Number | None = self._default_limit
            if new_limit is None and max_limit is not None:
                absent = form.absent_limit
                new_limit = max_limit if absent is None or absent > max_limit else absent
            if new_limit is not None:
                if minimum is not None and new_limit < minimum < inf:
                    new_limit = minimum
                found[form.limit] = new_limit if max_limit is None or new_limit < max_limit else max_limit
        if minimum is not None and max_limit is not None and minimum > max_limit:
            found[_MIN_TOKENS] = max_limit
        return found
