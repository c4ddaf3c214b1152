"""The gateway's choice of the engine that computes a prompt, on the loads of the plant.

The plant passes what a gateway would know of both engines, with the true duration of a KV transfer.
"""

from enum import Enum, auto

from fairlead.limits import Limits
from fairlead_autoscaler.core.types import ModelSpec
from fairlead_gateway.routing.load.inter_token_times import InterTokenTimes
from fairlead_gateway.routing.prefill_placement import LOCAL_RULES, PrefillEstimate, place_prefill
from fairlead_sim.autoscaling.pool import Pool, Replica

_MIN_HANDOFF_TOKENS = Limits().handoff_min_tokens


class PrefillPolicy(Enum):
    """The rule for the engine that computes a prompt.

    - APART: always a prefill engine.
    - BY_LENGTH: the decode engine for prompts below the gateway's limit.
    - SLACK: the gateway's decision by slack.
    """

    APART = auto()
    BY_LENGTH = auto()
    SLACK = auto()


class PrefillPlacement:
    """The prefill placement of one model; it records the prefill work of decode replicas."""

    def __init__(self, policy: PrefillPolicy, model: ModelSpec) -> None:
        self._itl_seconds = model.itl_seconds if policy is PrefillPolicy.SLACK else None
        self._ttft_seconds = model.ttft_seconds
        self._gaps = InterTokenTimes()

    def stays_at_decode(
        self,
        decoder: tuple[Pool, Replica],
        prefiller: tuple[Pool, Replica] | None,
        prompt_tokens: int,
        transfer_seconds: float,
        now: float,
    ) -> bool:
        """Returns whether the decode replica computes the prompt, and records that it does."""
        decode_side = _engine_side(*decoder, prompt_tokens, self._gaps.prefill_share(decoder[1].name, now))
        decision = place_prefill(
            decode_side,
            None if prefiller is None else _engine_side(*prefiller, prompt_tokens, 0.0),
            itl_seconds=self._itl_seconds,
            ttft_seconds=self._ttft_seconds,
            transfer_seconds=transfer_seconds,
            min_remote_tokens=_MIN_HANDOFF_TOKENS,
        )
        stays = decision.rule in LOCAL_RULES
        if stays:
            self._gaps.add_prefill(decode_side.id, decode_side.prefill_seconds, now)
        return stays


def _engine_side(pool: Pool, replica: Replica, prompt_tokens: int, prefill_share: float) -> PrefillEstimate:
    engine, profile = replica.engine, pool.setup.facts.profile
    return PrefillEstimate(
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
