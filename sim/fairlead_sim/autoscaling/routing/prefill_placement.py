"""Who computes a prompt in a plant whose prefill and decode are apart: the gateway's own decision (``routing.convertible``), from
what its ledger would know of the two engines. What KV takes to travel it has learned; how far apart tokens come it is not told."""

from enum import Enum, auto

from fairlead.decision import Decision
from fairlead.limits import Limits
from fairlead_autoscaler.core.types import ModelSpec
from fairlead_gateway.routing.load.inter_token_times import InterTokenTimes
from fairlead_gateway.routing.prefill_placement import LOCAL_RULES, PrefillOption, place_prefill
from fairlead_sim.autoscaling.pool import Pool, Replica

_MIN_HANDOFF_TOKENS = Limits().handoff_min_tokens


class PrefillPolicy(Enum):
    """Where prompts are computed: every one on a prefill engine; those under the gateway's limit on the engine that answers; or as
    the gateway decides from slack."""

    APART = auto()
    BY_LENGTH = auto()
    SLACK = auto()


def decide_placement(
    policy: PrefillPolicy,
    decoder: tuple[Pool, Replica],
    prefiller: tuple[Pool, Replica] | None,
    prompt_tokens: int,
    model: ModelSpec,
    transfer_seconds: float,
    gaps: InterTokenTimes,
    now: float,
) -> Decision:
    """Whether ``here``, the decode replica that would answer, computes the prompt, or ``there``, the best of those that prefill.
    ``gaps`` hears of it when it stays."""
    decode_side = _engine_side(*decoder, prompt_tokens, gaps.prefill_share(decoder[1].name, now))
    decision = place_prefill(
        decode_side,
        None if prefiller is None else _engine_side(*prefiller, prompt_tokens, 0.0),
        itl_seconds=model.itl_seconds if policy is PrefillPolicy.SLACK else None,
        ttft_seconds=model.ttft_seconds,
        transfer_seconds=transfer_seconds,
        min_remote_tokens=_MIN_HANDOFF_TOKENS,
    )
    if decision.rule in LOCAL_RULES:
        gaps.add_prefill(decode_side.id, decode_side.prefill_seconds, now)
    return decision


def _engine_side(pool: Pool, replica: Replica, prompt_tokens: int, prefill_share: float) -> PrefillOption:
    engine, profile = replica.engine, pool.setup.facts.profile
    return PrefillOption(
        replica.name,
        profile,
        engine.backlog_seconds,
        (profile or pool.setup.profile).prefill_time(prompt_tokens),
        prompt_tokens,
        0.0,
        engine.running() + engine.waiting(),
        engine.inflight_tokens,
        prefill_share,
    )
