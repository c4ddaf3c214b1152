"""A fixed number of engines kept divided between prefill and decode while the traffic changes.

Every few seconds the needs of both roles are worked out from the last ``WINDOW_SECONDS``, and the engines divided by them
(``ratio``). Two things make it follow a change of traffic within a minute:

*Prompts* are known when they arrive, and those still held at the gateway are work to come as much as those that arrive
next: both count, so engines are not taken from prefill while long prompts of the traffic before still wait for them.

*Answers* are known when they end, which may be a minute later. Until then there are two estimates. Tokens generated ÷
answers ended is right in a steady state, and far too high while a new kind of answers runs and none has ended. Twice the
mean age of those that run (what each has generated) is right where lengths are alike, too low while they are young, and
too high where few are long. Each errs in the other's favour, and the lower of the two is taken.

Both roles get the same margin here (``DECODE_FILL``): more engines cannot be had, so the question is only which division
carries most.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fairlead.fleet import Objectives
from fairlead.profile import EngineProfile
from fairlead_autoscaler.roles.ratio import Split, rates, split
from fairlead_autoscaler.roles.sizing import DECODE_FILL
from fairlead_autoscaler.roles.values import Traffic, Transfer

WINDOW_SECONDS = 15.0
"""So far back prompts speak for those that come."""
ANSWER_SECONDS = 60.0
"""So far back answers do: after a change they end in waves, as they began, and a short window would follow each wave."""
CHANGE_FACTOR = 1.5
CHANGE_REQUESTS = 20
"""Prompts whose mean of one look, of so many requests at least, is so far from that of the minute before are another traffic."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was counted since the last look, and what there is now. ``held`` and ``held_prompt_tokens`` are requests that
    wait at the gateway for prefill; ``age_tokens`` is what those that decode have generated so far, on average (None =
    nobody could tell, or nothing decodes). ``prefill`` and ``decode`` are the engines that have each role or are to get
    it."""

    now: float
    arrivals: float
    prompt_tokens: float
    generated_tokens: float
    finished: float
    prefill: int
    decode: int
    held: float = 0.0
    held_prompt_tokens: float = 0.0
    age_tokens: float | None = None


class Balancer:
    """Divides the engines of one model. Both roles run on engines of the profiles given."""

    def __init__(
        self, prefill: EngineProfile, decode: EngineProfile, objectives: Objectives, *, transfer: Transfer | None = None
    ) -> None:
        self._prefill = prefill
        self._decode = decode
        self._objectives = objectives
        self._transfer = transfer
        self._looks: tuple[Seen, ...] = ()
        self._answer: float | None = None

    def step(self, seen: Seen) -> Split:
        """The division to have now."""
        first = seen.now - ANSWER_SECONDS
        known = () if _changed(self._looks, seen) else self._looks
        self._looks = (*(look for look in known if look.now > first), seen)
        self._answer = _answer(self._looks, self._answer)
        recent = [look for look in self._looks if look.now > seen.now - WINDOW_SECONDS]
        longest = float(self._decode.kv_tokens)  # what fits no engine cannot have been served
        traffic = _traffic(recent, min(longest, self._answer or 1.0), longest)
        each = rates(self._prefill, self._decode, traffic, self._objectives, transfer=self._transfer, busy=DECODE_FILL)
        total = seen.prefill + seen.decode
        if each is None:
            return split(total, 0.0, 0.0, now=seen.prefill)
        offered = sum([one.requests_per_second for one in traffic])
        return split(total, offered / each.prefill, offered / each.decode, now=seen.prefill)


def _changed(looks: Sequence[Seen], seen: Seen) -> bool:
    """Whether the prompts of this look are of another kind than those before, so that the answers before say nothing."""
    before = sum([look.arrivals for look in looks])
    if before < CHANGE_REQUESTS or seen.arrivals < CHANGE_REQUESTS:
        return False
    ratio = (seen.prompt_tokens / seen.arrivals) / max(1.0, sum([look.prompt_tokens for look in looks]) / before)
    return not 1.0 / CHANGE_FACTOR <= ratio <= CHANGE_FACTOR


def _traffic(looks: Sequence[Seen], answer: float, longest: float) -> list[Traffic]:
    """What is to be served in the next window: as much as arrived in the last one, and what is held."""
    arrivals = sum([look.arrivals for look in looks])
    prompts = sum([look.prompt_tokens for look in looks])
    last = looks[-1]
    found = []
    for count, tokens in ((arrivals, prompts), (last.held, last.held_prompt_tokens)):
        if count >= 1.0:
            found.append(Traffic(count / WINDOW_SECONDS, min(longest, tokens / count), answer))
    return found


def _answer(looks: Sequence[Seen], before: float | None) -> float | None:
    """Mean tokens of an answer; None where nothing was ever generated."""
    generated = sum([look.generated_tokens for look in looks])
    finished = sum([look.finished for look in looks])
    estimates = [generated / finished] if finished >= 1.0 else []
    age = looks[-1].age_tokens
    if age is not None:
        estimates.append(2.0 * max(1.0, age))
    return min(estimates) if estimates else before
