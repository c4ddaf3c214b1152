"""The same requests through the fleet simulator: what the report sets beside the live numbers."""

from array import array
from collections.abc import Callable, Sequence

from fairlead.fleet import Objectives
from fairlead.profile import EngineProfile
from fairlead_cli.replaying.outcome import Outcome
from fairlead_gateway.routing import PrefixChain
from fairlead_sim.fleet import simulate
from fairlead_sim.traces import TraceRequest

ENGINE_BLOCK_TOKENS = 16


def simulated(
    requests: Sequence[TraceRequest],
    *,
    profile: EngineProfile,
    instance_ids: Sequence[str],
    preset: str,
    objectives: Objectives,
    secret: bytes,
    seed: int = 0,
    chain: Callable[[TraceRequest], PrefixChain] | None = None,
) -> list[Outcome]:
    """Outcomes in the profile's seconds, in the order of ``requests``. With ``chain`` homes are those of the real prompts."""
    served = simulate(
        requests,
        profile=profile,
        engines=len(instance_ids),
        preset=preset,
        objectives=objectives,
        block_tokens=ENGINE_BLOCK_TOKENS,
        secret=secret,
        seed=seed,
        instance_ids=instance_ids,
        chain=chain,
    )
    return [
        Outcome(
            id=item.id,
            due=item.arrival,
            prompt_tokens=item.prompt_tokens,
            instance=item.instance,
            ttft_seconds=item.ttft_seconds,
            gaps=array("d", item.gaps),
            finished=item.finish,
            cached_tokens=None if item.error else item.cached_tokens,
            output_tokens=item.output_tokens,
            error=item.error,
        )
        for item in served
    ]
