"""Pairs of prefill and decode instances that failed lately, and are avoided.

A request can fail on every pair that gets it. So a failure that may depend on the request makes a
pair suspect for its caller only. Once enough callers had one, the pair is suspect for all. Failures
that depend on no request, such as a refused connection, count for all at once. Ejections follow the
same evidence (`resilience.fault_evidence`).
"""

from collections.abc import Iterable, Mapping

from fairlead.fleet.model import Instance
from fairlead_gateway.caller_key import CallerKey
from fairlead_gateway.worker.runtime import WorkerRuntime

_Pair = tuple[str, str | None]


class PairHealth:
    """Prefill instances and pairs that failed less than `handoff_suspect_seconds` ago."""

    def __init__(self, runtime: WorkerRuntime) -> None:
        self._now = runtime.now
        self._suspect_seconds = runtime.limits.handoff_suspect_seconds
        self._min_callers = runtime.limits.breaker_fault_sources
        self._suspect_until: dict[_Pair, float] = {}
        self._suspect_of: dict[_Pair, dict[CallerKey, float]] = {}

    def mark_suspect(self, prefill_id: str, decode_id: str | None = None, caller: CallerKey | None = None) -> None:
        """Avoids a pair for a while, or the whole prefill instance if `decode_id` is None.

        caller: whose request failed; None if the failure does not depend on the request.
        """
        self._forget_old(now := self._now())
        pair, until = (prefill_id, decode_id), now + self._suspect_seconds
        if caller is not None:
            callers = self._suspect_of.setdefault(pair, {})
            callers[caller] = until
            if len(callers) < self._min_callers:
                return
            del self._suspect_of[pair]
        self._suspect_until[pair] = until

    def is_usable(self, prefill: Instance, decode: Instance, caller: CallerKey) -> bool:
        """Whether both use the same connector and have not failed together lately."""
        return decode.transfer == prefill.transfer and not self._is_suspect((prefill.id, decode.id), caller)

    def unusable_prefills(
        self, prefills: Mapping[str, Instance], decodes: Iterable[Instance], caller: CallerKey
    ) -> frozenset[str]:
        """Returns the prefill instances that failed lately, or have no usable decode instance."""
        decodes = tuple(decodes)
        return frozenset(
            name
            for name, prefill in prefills.items()
            if self._is_suspect((name, None), caller)
            or not any(self.is_usable(prefill, decode, caller) for decode in decodes)
        )

    def _is_suspect(self, pair: _Pair, caller: CallerKey) -> bool:
        if not self._suspect_until and not self._suspect_of:
            return False
        now = self._now()
        return self._suspect_until.get(pair, now) > now or self._suspect_of.get(pair, {}).get(caller, now) > now

    def _forget_old(self, now: float) -> None:
        self._suspect_until = {pair: until for pair, until in self._suspect_until.items() if until > now}
        recent = {
            pair: {caller: until for caller, until in callers.items() if until > now}
            for pair, callers in self._suspect_of.items()
        }
        self._suspect_of = {pair: callers for pair, callers in recent.items() if callers}
