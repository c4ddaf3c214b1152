"""Makes usage records from the rows of workers: tokens, cost and engine time. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.model import Fleet, Instance
from fairlead.usage.engine_time import decode_microseconds, prefill_microseconds
from fairlead.usage.record import UsageRecord, format_time
from fairlead_gateway.ipc.messages import UsageRow


@dataclass(frozen=True, slots=True)
class EngineReadings:
    """The gateway's knowledge of an instance.

    profile: returns the learned profile; None if there is none.
    running: returns how many requests it runs at once; None if it does not report it.
    """

    profile: Callable[[str], EngineProfile | None]
    running: Callable[[str], float | None]


class RequestPricing:
    """The prices and profiles by which requests become records."""

    def __init__(self, readings: EngineReadings) -> None:
        self._readings = readings
        self._fleet = Fleet()
        self._instances: Mapping[str, Instance] = {}
        self._default_profile = builtin_profile("h100-llama8b")

    def update_fleet(self, fleet: Fleet) -> None:
        """Replaces the fleet. Instances of the last one stay known: their requests end now."""
        current = {instance.id: instance for group in fleet.instances.values() for instance in group}
        before = {instance.id: instance for group in self._fleet.instances.values() for instance in group}
        self._fleet, self._instances = fleet, {**before, **current}

    def record(self, row: UsageRow) -> UsageRecord:
        """Returns the record of a request."""
        profile, instance = self._profile(row.instance), self._instances.get(row.instance)
        is_external = instance is not None and instance.leaves_cluster
        running = self._readings.running(row.instance)
        output = row.output_tokens
        prefill_instance = row.prefill_instance or row.instance
        prefill = prefill_microseconds(self._profile(prefill_instance), row.input_tokens, row.cached_tokens)
        decode = decode_microseconds(profile, row.input_tokens, output, running)
        prefill_pool = self._pool(row.prefill_instance) if row.prefill_instance else ""
        model = self._fleet.models.get(row.model)
        price = None if model is None else model.price
        return UsageRecord(
            id=row.id,
            at=format_time(row.ended_wall),
            tenant=row.tenant,
            model=row.model,
            status=row.status,
            key=row.key,
            adapter=row.adapter,
            tier=row.tier,
            input_tokens=row.input_tokens,
            cached_tokens=row.cached_tokens,
            output_tokens=output,
            is_estimated=row.is_estimated,
            cost_nano_usd=None if price is None else price.cost(row.input_tokens, row.cached_tokens, output),
            saved_nano_usd=None if price is None else price.saved(row.cached_tokens),
            pool=row.pool,
            instance=row.instance,
            is_external=is_external,
            engine_microseconds=0 if is_external else decode if prefill_pool else prefill + decode,
            prefill_pool=prefill_pool,
            prefill_microseconds=prefill if prefill_pool else 0,
        )

    def _profile(self, instance_id: str) -> EngineProfile:
        learned = self._readings.profile(instance_id)
        if learned is not None:
            return learned
        instance = self._instances.get(instance_id)
        return self._default_profile if instance is None or instance.profile is None else instance.profile

    def _pool(self, instance_id: str) -> str:
        instance = self._instances.get(instance_id)
        return "" if instance is None else instance.pool
