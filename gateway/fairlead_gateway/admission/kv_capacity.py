"""A plan of each instance's KV memory: whether the tokens of a request fit until it ends.

The tokens cached now are the prompts, without their shared prefixes, and the generated tokens. The
latter are estimated from the time since the first token and the time per token of the engine's last
responses. The tokens still to come are a quantile of the lengths of earlier responses
(`output_lengths`), at most what the client allows. A request fits if the peak stays
within the memory.

Unknown values refuse nothing. An instance of unknown memory has room. Before the first responses of
a model, a request counts `DEFAULT_OUTPUT_TOKENS` of output. While an instance is planned at most
half full, nothing is computed for it. Tokens of other processes count as the caller states them.
What does not depend on the request that asks is computed once for all requests that ask at the same
time: each instance's forecast. Its part without the time stays until the sequences there change.

**Headroom** (Llumnix): a request of a lower tier leaves `HEADROOM_PER_TIER` of the memory free for
each tier above it.

Source: Past-Future (arXiv 2507.10150), Llumnix (arXiv 2406.03243).

The peak of an engine's KV memory, as the running sequences grow and end.

A sequence keeps its tokens cached until it ends, and grows by one token per step. So memory peaks
just before some sequence ends. Let a_j be the tokens cached now and b_j those still to come, in
falling order of b. When the i-th sequence ends, i of them are present, and each has grown by b_i:

    peak = max over i of (a_1 + … + a_i + i · b_i)

A request is admitted if the peak with it stays within memory. Here b is a little over the
*median* of the remaining tokens, given those already generated (`output_lengths`).

Why: the sum of high quantiles is far above the quantile of the sum; it would reserve memory for all
outputs being long at once. Medians are updated with every token, so preemptions are rare already. A
margin of one standard deviation, measured, costs 5 % of the goodput and saves only those.

Source: Past-Future, the scheduler of LightLLM (arXiv 2507.10150). Changed: the median given what
was generated, instead of a sample of past lengths.

A bound on how long the requests of one caller hold back those of others, until memory is free.

A queued request whose memory fits nowhere holds back all others, so that small requests do not pass
a large one for ever. Among several callers, each may do so for `HOLD_SECONDS` in a row, then not
again for `PAUSE_SECONDS`. Meanwhile the other callers pass its requests.

Why: one prompt as large as a cache, sent again and again, would otherwise stop a model for all
callers.
"""

import math
from abc import abstractmethod
from collections.abc import Collection, Hashable
from typing import Final

from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN
from fairlead_gateway.routing.request import DEFAULT_OUTPUT_TOKENS, RouteRequest

USABLE_SHARE: Final = 0.99
"""Share of the memory that may be planned for: the last block of a sequence is partly empty."""

MAX_WAITING_STEP_SHARE: Final = 0.3
HEADROOM_PER_TIER: Final = 0.05
REQUESTS_AHEAD: Final = 2
"""Requests that may wait inside an instance, of callers that had a small share of the service.

Why: the next sequence or memory that becomes free there is theirs, whichever gateway used it.
"""
MAX_SHARE_AHEAD: Final = 0.25
"""Share of an instance's memory above which a request waits for it in the gateway."""
UNCHECKED_SHARE: Final = 0.5
DEFAULT_TOKEN_SECONDS: Final = 0.02
_TOKEN_SECONDS_SMOOTHING: Final = 0.1
_CANDIDATE_SECONDS: Final = 0.05
"""So long the forecast for one request serves admission, its queue and its dispatch. The forecasts
of `output_lengths` are older.
"""

HOLD_SECONDS: Final = 10.0
PAUSE_SECONDS: Final = 50.0
_MIN_COMPACTED: Final = 64


class SequenceForecast:
    """The KV-cache tokens of one sequence: cached now (or once its prompt is computed), and still
    to be generated.
    """

    __slots__ = ("now_tokens", "remaining_tokens")

    def __init__(self, now_tokens: float, remaining_tokens: float) -> None:
        self.now_tokens = now_tokens
        self.remaining_tokens = remaining_tokens


def peak_tokens(sequences: list[SequenceForecast]) -> float:
    """Returns the tokens cached at the peak; 0 without sequences."""
    return peak_with(in_falling_order(sequences), None)


def in_falling_order(sequences: list[SequenceForecast]) -> list[SequenceForecast]:
    """Returns the sequences in falling order of their remaining tokens, as `peak_with` wants it."""
    if len(sequences) < 2:
        return sequences
    return sorted(sequences, key=_remaining_tokens, reverse=True)


def peak_with(ordered: list[SequenceForecast], joined: SequenceForecast | None) -> float:
    """Returns the tokens cached at the peak of ordered sequences and one more.

    joined: None: no other one.
    """
    peak = total = 0.0
    count = 0
    for sequence in ordered:
        if joined is not None and joined.remaining_tokens > sequence.remaining_tokens:
            count += 1
            total += joined.now_tokens
            peak = max(peak, total + count * joined.remaining_tokens)
            joined = None
        count += 1
        total += sequence.now_tokens
        peak = max(peak, total + count * sequence.remaining_tokens)
    if joined is not None:
        peak = max(peak, total + joined.now_tokens + (count + 1) * joined.remaining_tokens)
    return peak


def _remaining_tokens(sequence: SequenceForecast) -> float:
    return sequence.remaining_tokens


class LengthForecast:
    """A forecast of output lengths.

    Why a base class and not a Protocol: compiled, its methods are called directly.
    """

    @abstractmethod
    def expected_remaining(
        self, length_class: Hashable, prompt_tokens: float, generated: int, now: float
    ) -> float | None:
        """Returns the number of further tokens to plan for; None if no answer was counted."""


class EngineLoad:
    """The load of a ready instance.

    - backlog_seconds: prefill that waits there, sent by all gateways.
    - step_seconds: prefill time of a full step.
    - kv_tokens: size of its KV cache, as far as it may be planned for; None if unknown.
    - withheld_tokens: the rest of its KV cache.
    - other_tokens: tokens there that belong to requests of other processes.
    - free_sequences: how many more requests it computes at a time; negative if some wait there.
      Infinite if that is not known, or decided elsewhere.
    """

    __slots__ = (
        "backlog_seconds",
        "free_sequences",
        "id",
        "kv_tokens",
        "other_tokens",
        "step_seconds",
        "withheld_tokens",
    )

    def __init__(
        self,
        id: str,
        backlog_seconds: float,
        step_seconds: float,
        kv_tokens: float | None = None,
        other_tokens: float = 0.0,
    ) -> None:
        self.free_sequences = math.inf
        self.withheld_tokens = 0.0
        self.id = id
        self.backlog_seconds = backlog_seconds
        self.step_seconds = step_seconds
        self.kv_tokens = kv_tokens
        self.other_tokens = other_tokens

    def has_room(self, *, long: bool) -> bool:
        """Returns True if it can begin one more request soon; for a long prompt, at once."""
        seconds = self.backlog_seconds
        return seconds <= 0.0 if long else seconds < MAX_WAITING_STEP_SHARE * self.step_seconds

    def limit_sequences(self, bound: int | None, sent: int) -> None:
        """Sets `free_sequences`; without a bound, it stays as it is.

        bound: requests that the instance computes at a time; None if unknown.
        sent: requests of all processes at the instance.
        """
        if bound is not None:
            self.free_sequences = float(bound - sent)

    def withhold_memory(self, usable_share: float) -> None:
        """Leaves in `kv_tokens` the share that may be planned for; the rest is withheld."""
        if self.kv_tokens is not None:
            self.withheld_tokens = (1.0 - usable_share) * self.kv_tokens
            self.kv_tokens -= self.withheld_tokens

    def has_free_sequence(self, *, small_share: bool) -> bool:
        """Whether the instance can start one more request of a caller.

        Where callers are distinguished, further requests wait in the gateway, since the engine
        would order them by arrival. If other processes have requests there, callers with a small
        share may exceed the bound by `REQUESTS_AHEAD`.

        small_share: the caller was served much less than another one.
        """
        return self.free_sequences > (-REQUESTS_AHEAD if small_share and self.other_tokens > 0.0 else 0)

    def may_queue_for_memory(self, needed_tokens: float, missing_tokens: float) -> bool:
        """Returns whether a request of a caller with a small share may wait for memory inside.

        Only where other processes have requests, which may get what becomes free first.
        Why not a large one: inside the instance, all later ones would wait behind it.
        Why what is withheld counts as free: each process learns it for itself, and one that
        withholds less fills it with requests of others.
        """
        return (
            self.kv_tokens is not None
            and self.other_tokens > 0.0
            and needed_tokens <= MAX_SHARE_AHEAD * self.kv_tokens
            and missing_tokens - self.withheld_tokens <= REQUESTS_AHEAD * needed_tokens
        )


class _Sequence:
    __slots__ = ("earlier", "first_at", "instance", "length_class", "planned_tokens", "prompt_tokens", "request")

    def __init__(
        self, request: RouteRequest, instance: str, prompt_tokens: float, length_class: Hashable, planned_tokens: float
    ) -> None:
        self.earlier = 0  # tokens of the answer that other instances have generated
        self.request = request
        self.instance = instance
        self.prompt_tokens = prompt_tokens
        self.length_class = length_class
        self.planned_tokens = planned_tokens
        self.first_at: float | None = None


class _PromptBlocks:
    """The blocks of the prompts of one instance.

    Hashes are of whole prefixes, so prompts share blocks only if they share the first one. The
    blocks of a prompt whose first one is unique are not looked at.
    """

    __slots__ = ("_blocks", "_first")

    def __init__(self) -> None:
        self._first: dict[Hashable, tuple[Hashable, ...]] = {}  # typed so that no hash is converted
        self._blocks: dict[Hashable, set[Hashable]] = {}

    def add(self, hashes: tuple[Hashable, ...]) -> None:
        """Adds the blocks of one prompt."""
        if not hashes:
            return
        first = hashes[0]
        earlier = self._first.get(first)
        if earlier is None:
            self._first[first] = hashes
            return
        blocks = self._blocks.get(first)
        if blocks is None:
            blocks = self._blocks[first] = set(earlier)
        blocks.update(hashes)

    def count_shared(self, hashes: tuple[Hashable, ...]) -> int:
        """Returns how many leading blocks of a prompt are among these."""
        earlier = self._first.get(hashes[0]) if hashes else None
        if earlier is None:
            return 0
        blocks: Collection[Hashable] = self._blocks.get(hashes[0]) or earlier
        shared = 1
        if blocks is earlier:
            while shared < len(hashes) and shared < len(earlier) and hashes[shared] == earlier[shared]:
                shared += 1
        else:
            while shared < len(hashes) and hashes[shared] in blocks:
                shared += 1
        return shared


class _EngineUsage:
    """The sequences of one instance.

    prompt_tokens: those of each prompt, without what earlier sequences share; None after a change.
    blocks: all blocks of these prompts.
    forecasts: of all sequences at `forecast_at`, in falling order; None after a change.
    """

    __slots__ = (
        "blocks",
        "forecast_at",
        "forecasts",
        "planned_tokens",
        "prompt_tokens",
        "sequences",
        "token_seconds",
    )

    def __init__(self) -> None:
        self.sequences: dict[str, _Sequence] = {}
        self.planned_tokens = 0.0
        self.token_seconds = DEFAULT_TOKEN_SECONDS
        self.prompt_tokens: list[float] | None = None
        self.blocks = _PromptBlocks()
        self.forecasts: list[SequenceForecast] | None = None
        self.forecast_at = 0.0


class KvCapacityPlanner:
    """The plan of the KV memory of one model's instances, made from its sequences in flight."""

    def __init__(self, forecast: LengthForecast) -> None:
        self.forecast = forecast
        self._sequences: dict[str, _Sequence] = {}
        self._usage: dict[str, _EngineUsage] = {}
        self._planned_tokens = 0.0
        self._candidate: RouteRequest | None = None
        self._candidate_at = self._candidate_tokens = 0.0  # of each of its answers

    def on_dispatch(
        self,
        request: RouteRequest,
        instance: str,
        prompt_tokens: float,
        length_class: Hashable,
        now: float,
        generated: int = 0,
    ) -> None:
        """Counts a dispatched request. A retry first ends its former attempt.

        generated: tokens of a stream that goes on there.
        """
        if request.id in self._sequences:
            self.on_finish(request.id)
        if generated:  # a stream that goes on, which has one answer
            rest = self._remaining_of_each(request, prompt_tokens, length_class, generated, now)
        else:
            rest = self._remaining_of_candidate(request, prompt_tokens, length_class, now)
        planned = prompt_tokens + generated + rest
        sequence = self._sequences[request.id] = _Sequence(request, instance, prompt_tokens, length_class, planned)
        sequence.earlier = generated
        usage = self._usage.get(instance)
        if usage is None:
            usage = self._usage[instance] = _EngineUsage()
        usage.sequences[request.id] = sequence
        usage.prompt_tokens = usage.forecasts = None
        usage.planned_tokens += planned
        self._planned_tokens += planned

    def on_first_token(self, request_id: str, now: float) -> None:
        """Records when the output of a sequence began; later calls are ignored."""
        sequence = self._sequences.get(request_id)
        if sequence is not None and sequence.first_at is None:
            sequence.first_at = now
            self._usage[sequence.instance].forecasts = None

    def on_finish(self, request_id: str, now: float | None = None, output_tokens: int | None = None) -> None:
        """Removes a sequence. A complete response updates the instance's time per token.

        now, output_tokens: None if the response is not complete.
        """
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return
        del self._sequences[request_id]
        self._planned_tokens = self._planned_tokens - sequence.planned_tokens if self._sequences else 0.0
        usage = self._usage[sequence.instance]
        del usage.sequences[request_id]
        usage.prompt_tokens = usage.forecasts = None
        usage.planned_tokens = usage.planned_tokens - sequence.planned_tokens if usage.sequences else 0.0
        if now is not None and output_tokens is not None and output_tokens > 1 and sequence.first_at is not None:
            usage.token_seconds += _TOKEN_SECONDS_SMOOTHING * (
                (now - sequence.first_at) / (output_tokens - 1) - usage.token_seconds
            )

    def retain(self, instances: frozenset[str]) -> None:
        for name in [name for name, usage in self._usage.items() if name not in instances and not usage.sequences]:
            del self._usage[name]

    def expected_output(self, request: RouteRequest, prompt_tokens: float, length_class: Hashable, now: float) -> float:
        """Returns the tokens to plan for each answer of a request that has not begun."""
        self._forecast_candidate(request, prompt_tokens, length_class, now)
        return self._candidate_tokens

    def elapsed_output(self, request_id: str, dispatched_at: float, now: float) -> float:
        """Returns the tokens that each answer of a sequence in flight may have by now.

        Without a known first token they count from the dispatch.
        """
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return 0.0
        since = dispatched_at if sequence.first_at is None else sequence.first_at
        tokens = sequence.earlier + 1.0 + (now - since) / max(1e-6, self._usage[sequence.instance].token_seconds)
        return min(tokens, sequence.request.max_tokens or tokens)

    def has_headroom(self, request: RouteRequest, capacity: float) -> bool:
        """Returns True if one instance, with all sequences and the request, is at most half full.

        capacity: tokens in the KV cache of that instance.
        """
        max_tokens = request.max_tokens
        needed = 2.0 * request.prompt_tokens + request.sequences * (max_tokens or DEFAULT_OUTPUT_TOKENS)
        return self._planned_tokens + needed <= UNCHECKED_SHARE * USABLE_SHARE * capacity

    def missing_tokens(
        self,
        engine: EngineLoad,
        request: RouteRequest,
        prompt_tokens: float,
        length_class: Hashable,
        now: float,
        *,
        tier: int = 0,
    ) -> float:
        """Returns the tokens missing at the peak if the request joined now; 0 if it fits, or if
        the capacity is unknown.
        """
        if engine.kv_tokens is None:
            return 0.0
        other_tokens, usage = engine.other_tokens, self._usage.get(engine.id)
        planned = other_tokens + (0.0 if usage is None else usage.planned_tokens)
        remaining = self._remaining_of_candidate(request, prompt_tokens, length_class, now)
        needed = prompt_tokens + remaining
        usable = USABLE_SHARE * engine.kv_tokens * max(0.0, 1.0 - HEADROOM_PER_TIER * tier)
        if planned + needed <= UNCHECKED_SHARE * usable or (planned <= 0.0 and (usage is None or not usage.sequences)):
            return 0.0
        peak = needed if usage is None else self._peak_with(usage, request, prompt_tokens, remaining, now)
        return max(0.0, other_tokens + peak - usable)

    def _remaining_of_candidate(
        self, request: RouteRequest, prompt_tokens: float, length_class: Hashable, now: float
    ) -> float:
        self._forecast_candidate(request, prompt_tokens, length_class, now)
        return request.sequences * self._candidate_tokens  # of all its answers

    def _forecast_candidate(
        self, request: RouteRequest, prompt_tokens: float, length_class: Hashable, now: float
    ) -> None:
        """Sets `_candidate_tokens`, unless it was set for this request just now."""
        if request is not self._candidate or not 0.0 <= now - self._candidate_at < _CANDIDATE_SECONDS:
            self._candidate, self._candidate_at = request, now
            self._candidate_tokens = self._remaining_of_each(request, prompt_tokens, length_class, 0, now)

    def _peak_with(
        self, usage: _EngineUsage, request: RouteRequest, prompt_tokens: float, remaining: float, now: float
    ) -> float:
        forecasts = usage.forecasts
        if forecasts is None or usage.forecast_at != now:
            forecasts = usage.forecasts = self._forecasts(usage, now)
            usage.forecast_at = now
        own_tokens = _unshared_tokens(request, prompt_tokens, usage.blocks)
        return peak_with(forecasts, SequenceForecast(own_tokens, remaining))

    def _forecasts(self, usage: _EngineUsage, now: float) -> list[SequenceForecast]:
        """Returns the KV tokens of each sequence now and to come, as `peak_with` wants them."""
        prompts = usage.prompt_tokens
        if prompts is None:  # in order of arrival: a shared block counts for the first alone
            prompts, usage.blocks = [], _PromptBlocks()
            for sequence in usage.sequences.values():
                prompts.append(_unshared_tokens(sequence.request, sequence.prompt_tokens, usage.blocks))
                usage.blocks.add(sequence.request.chain.hashes)
            usage.prompt_tokens = prompts
        forecasts: list[SequenceForecast] = []
        for number, sequence in enumerate(usage.sequences.values()):
            request, generated = sequence.request, sequence.earlier
            if sequence.first_at is not None:
                # From the time since the first token: nothing counts the tokens between.
                generated += 1 + int((now - sequence.first_at) / max(1e-6, usage.token_seconds))
            remaining = request.sequences * self._remaining_of_each(
                request, sequence.prompt_tokens, sequence.length_class, generated, now
            )
            forecasts.append(SequenceForecast(prompts[number] + generated * request.sequences, remaining))
        return in_falling_order(forecasts)

    def _remaining_of_each(
        self, request: RouteRequest, prompt_tokens: float, length_class: Hashable, generated: int, now: float
    ) -> float:
        """Returns the tokens to come of one answer that has `generated` of them."""
        forecast = self.forecast.expected_remaining(length_class, prompt_tokens, generated, now)
        remaining = max(1.0, DEFAULT_OUTPUT_TOKENS - generated) if forecast is None else forecast
        return remaining if not request.max_tokens else max(0.0, min(remaining, request.max_tokens - generated))


def _unshared_tokens(request: RouteRequest, prompt_tokens: float, blocks: _PromptBlocks) -> float:
    """Returns the prompt tokens after the leading blocks that earlier sequences have too."""
    chain = request.chain
    shared = blocks.count_shared(chain.hashes)
    if not shared or request.prompt_tokens <= 0.0:
        return prompt_tokens
    part = chain.ends[shared - 1] / max(1.0, request.prompt_tokens * BYTES_PER_TOKEN)
    return prompt_tokens * (1.0 - min(1.0, part))


class MemoryHold:
    """The start of the last hold of each caller."""

    def __init__(self) -> None:
        self._started_at: dict[Hashable, float] = {}

    def hold_if_allowed(self, caller: Hashable, now: float) -> bool:
        """Begins or continues a hold of the caller, whose request holds back the others meanwhile.
        Returns False while it may not.
        """
        started_at = self._started_at.get(caller)
        if started_at is not None and now - started_at < HOLD_SECONDS + PAUSE_SECONDS:
            return now - started_at < HOLD_SECONDS
        if len(self._started_at) >= _MIN_COMPACTED:
            oldest = now - HOLD_SECONDS - PAUSE_SECONDS
            self._started_at = {known: at for known, at in self._started_at.items() if at > oldest}
        self._started_at[caller] = now
        return True
