"""Pure functions from the gateway's values to the JSON of the API."""

from collections.abc import Callable
from typing import Final

from msgspec import structs

from fairlead import management_api as api
from fairlead.fleet import model as fleet
from fairlead.fleet.file import profile_fields
from fairlead.routes.model import Route
from fairlead.tenants.model import Tenant
from fairlead_gateway.profiles.profile_estimator import LearnedProfile
from fairlead_gateway.supervisor.management.view import GatewayStatus
from fairlead_gateway.telemetry.status_types import InstanceIndexStatus, ModelIndexStatus

_SHORT_DIGEST: Final = 12


def fleet_out(snapshot: fleet.Fleet, status: GatewayStatus, now: float) -> api.FleetOut:
    """Returns the fleet with the in-flight load and the health state of each instance."""
    index = status.index
    return api.FleetOut(
        version=snapshot.version,
        membership_epoch=snapshot.membership_epoch,
        models=[
            api.ModelOut(
                key=key,
                namespace=model.namespace,
                name=model.name,
                preset=model.routing.preset,
                wakes=model.wakes,
                objectives=api.ObjectivesOut(
                    target=model.objectives.target,
                    ttft_seconds=model.objectives.ttft_seconds,
                    ttft_per_kilo_token_seconds=model.objectives.ttft_per_kilo_token_seconds,
                    itl_seconds=model.objectives.itl_seconds,
                ),
                links=_links_out(index.get(key)),
                instances=[
                    _instance_out(instance, status, index.get(key), now) for instance in snapshot.instances.get(key, ())
                ],
                lost=[api.LostInstanceOut(one.id, now - one.lost_at) for one in status.lost.get(key, ())],
            )
            for key, model in snapshot.models.items()
        ],
        routes=[
            api.DeclaredRouteOut(
                key=key,
                names=list(route.names),
                targets={target.model: target.weight for target in route.targets},
                overrides=len(route.overrides),
                fallbacks=fallbacks_out(route),
                shadow=route.shadow,
            )
            for key, route in snapshot.routes.items()
        ],
    )


def fallbacks_out(route: Route) -> list[api.DeclaredFallbackOut]:
    """Returns the fallbacks of a route, in its order."""
    return [
        api.DeclaredFallbackOut(model=found.to, when=sorted(found.when), after=found.after) for found in route.fallbacks
    ]


def _links_out(look: ModelIndexStatus | None) -> api.LinksOut | None:
    if look is None:
        return None
    return api.LinksOut(
        blocks=look.linked_blocks, lowered=look.lowered_links, prompts=look.learned_prompts, how=look.token_source
    )


def _index_out(one: InstanceIndexStatus | None) -> api.IndexOut | None:
    if one is None:
        return None
    return api.IndexOut(
        state=one.state,
        reason=one.reason or None,
        predicted_tokens=one.predicted_tokens,
        reported_tokens=one.reported_tokens,
        ratio=one.ratio,
        answers=one.answers,
        silent=one.unreported,
        late=one.late,
        quarantines=one.quarantines,
        scale_down=_scale_down_out(one),
    )


def _scale_down_out(one: InstanceIndexStatus) -> api.ScaleDownOut | None:
    counts = one.block_counts
    if counts is None:
        return None
    return api.ScaleDownOut(blocks=counts.blocks, unique_blocks=counts.unique, unique_used_blocks=counts.unique_used)


def _instance_out(
    instance: fleet.Instance, status: GatewayStatus, look: ModelIndexStatus | None, now: float
) -> api.InstanceOut:
    load, answered_at = status.loads.get(instance.id), status.answer_times.get(instance.id)
    stands, why = status.health_of(instance.id) if status.health_of is not None else (None, None)
    learned = status.learned_profile(instance.id) if status.learned_profile is not None else None
    return api.InstanceOut(
        id=instance.id,
        pool=instance.pool,
        url=instance.url,
        engine=instance.engine,
        role=instance.role,
        state=instance.state,
        weight=instance.weight,
        adapters=sorted(instance.adapters | status.adapters.get(instance.id, frozenset())),
        in_flight=None if load is None else load.inflight,
        waiting=None if load is None else load.waiting,
        backlog_seconds=None if load is None else load.backlog_seconds,
        in_flight_tokens=None if load is None else load.inflight_tokens,
        standing=stands,
        standing_reason=why or None,
        ejection=status.ejections.get(instance.id),
        answer_age_seconds=None if answered_at is None else max(0.0, now - answered_at),
        index=_index_out(look.instances.get(instance.id) if look is not None else None),
        signals=_signals_out(instance, now),
        profile=_profile_out(learned),
    )


def _profile_out(learned: LearnedProfile | None) -> api.ProfileOut | None:
    if learned is None:
        return None
    profile = learned.profile
    return api.ProfileOut(
        learned=learned.is_reliable,
        prefill_kilotoken_seconds=profile.prefill_time(1_000),
        prefill_ten_kilotokens_seconds=profile.prefill_time(10_000),
        decode_step_seconds=profile.step_time(computed=16, sequences=16, resident=16_000),
        coefficients=profile_fields(profile),
        pace=learned.slowdown,
        spans=round(learned.observations, 1),
        error=learned.error,
    )


def _signals_out(instance: fleet.Instance, now: float) -> api.SignalsOut | None:
    said = instance.signals
    if said is None:
        return None
    hits, queries = said.prefix_hits_total, said.prefix_queries_total
    return api.SignalsOut(
        age_seconds=None if instance.received_at is None else max(0.0, now - instance.received_at),
        running=said.running,
        waiting=said.waiting,
        kv_usage=said.kv_usage,
        prefix_hit_share=None if hits is None or not queries else hits / queries,
        preemptions_total=said.preemptions_total,
        sleeping=said.sleeping,
    )


def without_placement(decision: api.DecisionOut) -> api.DecisionOut:
    """Returns a decision without instances, reasons, cached tokens and inputs.

    Why: they show the load of engines that others use, and what is cached where.
    """
    choices = [
        structs.replace(choice, instance=None, reason="", cost_seconds=None, candidates=[], inputs={})
        for choice in decision.choices
    ]
    outcome = decision.outcome
    if outcome is not None:
        outcome = structs.replace(outcome, cached_tokens=None, predicted_cached_tokens=None, failures=[])
    return structs.replace(decision, choices=choices, outcome=outcome, handoff=None)


def tenant_out(tenant: Tenant, used_at: Callable[[bytes], float | None]) -> api.TenantOut:
    """Returns a tenant with its keys.

    used_at: returns when a key was used last, from its digest.
    """
    keys = [
        api.KeyUseOut(
            name=key.name,
            digest=key.digest.hex()[:_SHORT_DIGEST],
            expires_at=key.expires_at,
            last_used_at=used_at(key.digest),
        )
        for key in tenant.keys
    ]
    return api.TenantOut(
        name=tenant.name,
        tier=tenant.tier.value,
        weight=tenant.weight,
        is_suspended=tenant.is_suspended,
        keys=keys,
    )
