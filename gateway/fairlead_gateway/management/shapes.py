"""From the gateway's values to the JSON of the API: pure functions, one for each answer."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import msgspec

from fairlead import decision, fleet
from fairlead.fleetfile import dump_profile
from fairlead_gateway.decision_log import CONTINUED, DecisionRecord, Logged
from fairlead_gateway.handoff_story import HandoffStory, PrefillLeg
from fairlead_gateway.learning.pupil import Learned
from fairlead_gateway.management import models
from fairlead_gateway.telemetry import Load
from fairlead_gateway.telemetry.index import InstanceIndex, Looks, ModelLook

Standings = Callable[[str], tuple[str, str]]


def fleet_json(
    snapshot: fleet.Fleet,
    loads: Mapping[str, Load],
    now: float,
    standing: Standings | None = None,
    index: Looks = MappingProxyType({}),
    learned: Callable[[str], Learned | None] | None = None,
) -> models.Fleet:
    """The fleet with the gateway's own ledger and verdict beside each instance."""
    return models.Fleet(
        version=snapshot.version,
        membership_epoch=snapshot.membership_epoch,
        models=[
            models.Model(
                key=key,
                namespace=model.namespace,
                name=model.name,
                preset=model.preset,
                wakes=model.wakes,
                objectives=models.Objectives(
                    target=model.objectives.target,
                    ttft_seconds=model.objectives.ttft_seconds,
                    ttft_per_kilo_token_seconds=model.objectives.ttft_per_kilo_token_seconds,
                    itl_seconds=model.objectives.itl_seconds,
                ),
                links=_links(index.get(key)),
                wanted=_wanted(index.get(key)),
                instances=[
                    _instance(
                        instance,
                        loads.get(instance.id),
                        now,
                        standing,
                        index.get(key),
                        learned(instance.id) if learned is not None else None,
                    )
                    for instance in snapshot.instances.get(key, ())
                ],
            )
            for key, model in snapshot.models.items()
        ],
    )


def _links(look: ModelLook | None) -> models.Links | None:
    if look is None:
        return None
    return models.Links(blocks=look.links, lowered=look.lowered, prompts=look.learned, how=look.how)


def _wanted(look: ModelLook | None) -> list[models.Wanted]:
    return [] if look is None else [models.Wanted(**msgspec.structs.asdict(one)) for one in look.wanted]


def _index(one: InstanceIndex | None) -> models.Index | None:
    if one is None:
        return None
    return models.Index(
        state=one.state,
        reason=one.reason or None,
        predicted_tokens=one.predicted,
        reported_tokens=one.reported,
        ratio=one.ratio,
        answers=one.answers,
        silent=one.silent,
        late=one.late,
        quarantines=one.quarantines,
        scale_down=_scale_down(one),
    )


def _scale_down(one: InstanceIndex) -> models.ScaleDown | None:
    if one.held is None or one.victim is None:
        return None
    return models.ScaleDown(
        rank=one.victim.rank,
        blocks=one.held.blocks,
        unique_blocks=one.victim.unique,
        unique_used_blocks=one.victim.used,
        reason=one.victim.reason,
    )


def _instance(
    instance: fleet.Instance,
    load: Load | None,
    now: float,
    standing: Standings | None,
    look: ModelLook | None,
    learned: Learned | None,
) -> models.Instance:
    stands, why = standing(instance.id) if standing is not None else (None, None)
    return models.Instance(
        id=instance.id,
        pool=instance.pool,
        url=instance.url,
        engine=instance.engine,
        role=instance.role,
        state=instance.state,
        weight=instance.weight,
        adapters=sorted(instance.adapters),
        in_flight=None if load is None else load.inflight,
        waiting=None if load is None else load.waiting,
        backlog_seconds=None if load is None else load.backlog_seconds,
        in_flight_tokens=None if load is None else load.inflight_tokens,
        standing=stands,
        standing_reason=why or None,
        index=_index(look.instances.get(instance.id) if look is not None else None),
        signals=_signals(instance, now),
        profile=_profile(learned),
    )


def _profile(learned: Learned | None) -> models.Profile | None:
    if learned is None:
        return None
    profile = learned.profile
    return models.Profile(
        learned=learned.stands,
        prefill_kilotoken_seconds=profile.prefill(1_000),
        prefill_ten_kilotokens_seconds=profile.prefill(10_000),
        decode_step_seconds=profile.step(computed=16, sequences=16, resident=16_000),
        coefficients=dump_profile(profile),
        pace=learned.pace,
        spans=round(learned.spans, 1),
        error=learned.error,
    )


def _signals(instance: fleet.Instance, now: float) -> models.Signals | None:
    said = instance.signals
    if said is None:
        return None
    hits, queries = said.prefix_hits_total, said.prefix_queries_total
    return models.Signals(
        age_seconds=None if instance.received_at is None else max(0.0, now - instance.received_at),
        running=said.running,
        waiting=said.waiting,
        kv_usage=said.kv_usage,
        prefix_hit_share=None if hits is None or not queries else hits / queries,
        preemptions_total=said.preemptions_total,
        sleeping=said.sleeping,
    )


def decision_json(logged: Logged) -> models.Decision:
    """One request's choices and its end."""
    first = logged.records[0]
    return models.Decision(
        request_id=first.request_id,
        model=first.model_key,
        wall=first.wall,
        prompt_tokens=first.prompt_tokens,
        caller=first.caller,
        handoff=None if first.story is None else _handoff(first.story),
        choices=[_choice(record) for record in logged.records],
        outcome=None if logged.outcome is None else _outcome(logged),
    )


def _choice(record: DecisionRecord) -> models.Choice:
    made = record.decision
    candidates, inputs = _candidates(made)
    return models.Choice(
        attempt=record.attempt,
        wall=record.wall,
        instance=made.chosen,
        rule=made.rule,
        reason=made.reason,
        cost_seconds=made.cost_seconds,
        candidates=candidates,
        inputs=inputs,
    )


def _candidates(made: decision.Decision) -> tuple[list[models.Candidate], dict[str, models.Number]]:
    """Everyone who was looked at, the chosen one first, and the inputs that belong to none of them."""
    ids = [] if made.chosen is None else [made.chosen]
    ids += [item.id for item in made.rejected if item.id != made.chosen]
    of_candidate, of_all = _split(made.inputs, ids)
    why = {item.id: item.why for item in made.rejected}
    if made.chosen is not None:
        why[made.chosen] = made.reason
    found = [
        models.Candidate(id=item, chosen=item == made.chosen, why=why[item], inputs=of_candidate[item]) for item in ids
    ]
    return found, of_all


def _handoff(story: HandoffStory) -> models.Handoff:
    return models.Handoff(
        outcome=story.outcome,
        reason=story.reason,
        words=story.words,
        where=None if story.where is None else _where(story.where),
        waited_seconds=story.waited_seconds,
        legs=[_leg(leg) for leg in story.legs],
    )


def _where(made: decision.Decision) -> models.Where:
    candidates, inputs = _candidates(made)
    return models.Where(instance=made.chosen, rule=made.rule, reason=made.reason, candidates=candidates, inputs=inputs)


def _leg(leg: PrefillLeg) -> models.PrefillLeg:
    candidates, inputs = _candidates(leg.decision)
    return models.PrefillLeg(
        instance=leg.instance_id,
        rule=leg.decision.rule,
        reason=leg.decision.reason,
        cost_seconds=leg.decision.cost_seconds,
        candidates=candidates,
        inputs=inputs,
        seconds=leg.seconds,
        result=leg.result,
    )


def _split(
    inputs: Mapping[str, decision.Input], ids: Sequence[str]
) -> tuple[dict[str, dict[str, models.Number]], dict[str, models.Number]]:
    """``"<id>/<name>"`` goes to its candidate (ids hold slashes themselves), everything else stays general."""
    of_candidate: dict[str, dict[str, models.Number]] = {item: {} for item in ids}
    of_all: dict[str, models.Number] = {}
    for key, value in inputs.items():
        number = models.Number(value=value.value, age_seconds=value.age_seconds)
        owner, _, name = key.rpartition("/")
        if owner in of_candidate:
            of_candidate[owner][name] = number
        else:
            of_all[key] = number
    return of_candidate, of_all


def _outcome(logged: Logged) -> models.Outcome:
    ended = logged.outcome
    assert ended is not None
    return models.Outcome(
        status=ended.status,
        error=ended.error,
        client_gone=ended.client_gone,
        attempts=ended.attempts,
        duration_seconds=ended.duration_seconds,
        ttft_seconds=ended.ttft_seconds,
        itl_mean_seconds=ended.itl_mean_seconds,
        prompt_tokens=ended.prompt_tokens,
        cached_tokens=ended.cached_tokens,
        predicted_cached_tokens=ended.predicted_cached_tokens,
        output_tokens=ended.output_tokens,
        within_objective=ended.within_objective,
        overhead_seconds=ended.overhead_seconds,
        failures=[models.Failure(instance=instance, why=why) for instance, why in ended.failures],
        continued=any(record.decision.rule == CONTINUED for record in logged.records),
    )
