"""Pairs of prefill and decode instances that failed lately, and are avoided."""

from collections.abc import Iterable, Mapping

from fairlead.fleet.model import Instance
from fairlead_gateway.worker.runtime import WorkerRuntime


class PairHealth:
    """Prefill instances and pairs that failed less than `handoff_suspect_seconds` ago."""

    def __init__(self, runtime: WorkerRuntime) -> None:
        self._now = runtime.now
        self._suspect_seconds = runtime.limits.handoff_suspect_seconds
        self._suspect_until: dict[tuple[str, str | None], float] = {}

    def mark_suspect(self, prefill_id: str, decode_id: str | None = None) -> None:
        """Avoids a pair for a while, or the whole prefill instance if `decode_id` is None."""
        now = self._now()
        self._suspect_until = {pair: until for pair, until in self._suspect_until.items() if until > now}
        self._suspect_until[prefill_id, decode_id] = now + self._suspect_seconds

    def is_usable(self, prefill: Instance, decode: Instance) -> bool:
        """Whether both use the same connector and have not failed together lately."""
        return decode.transfer == prefill.transfer and not self._is_suspect(prefill.id, decode.id)

    def unusable_prefills(self, prefills: Mapping[str, Instance], decodes: Iterable[Instance]) -> frozenset[str]:
        """Returns the prefill instances that failed lately, or have no usable decode instance."""
        decodes = tuple(decodes)
        return frozenset(
            name
            for name, prefill in prefills.items()
            if self._is_suspect(name, None) or not any(self.is_usable(prefill, decode) for decode in decodes)
        )

    def _is_suspect(self, prefill_id: str, decode_id: str | None) -> bool:
        now = self._now()
        return self._suspect_until.get((prefill_id, decode_id), now) > now
