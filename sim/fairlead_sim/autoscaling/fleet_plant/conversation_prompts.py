"""The prompts of conversations: what the gateway hashes and what engines cache of each."""

from collections.abc import Sequence

from fairlead_gateway.routing import PrefixChain
from fairlead_sim.autoscaling.fleet_plant.conversations import (
    NO_PARENT,
    PREFIX_BLOCK_TOKENS,
    ConversationOptions,
    ConversationTurns,
)
from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_sim.workload.trace_prompts import TracePromptCache, trace_chain, trace_keys
from fairlead_sim.workload.traces import TraceRequest

_REQUEST_SHIFT = 24
"""Block ids below ``1 << _REQUEST_SHIFT`` are the system prompt's."""


class ConversationPrompts(TracePromptCache):
    """The prompts of one load, made at their arrival and not kept.

    Why not kept: the block keys of a day of conversations would take gigabytes.
    """

    def __init__(
        self,
        load: ArrivalTrace,
        turns: ConversationTurns,
        options: ConversationOptions,
        *,
        secret: bytes,
        seed: bytes,
    ) -> None:
        super().__init__(PREFIX_BLOCK_TOKENS, secret=secret, seed=seed)
        self._load = load
        self._parents = turns.parents
        self._chain_secret = secret
        self._chain_seed = seed
        self._continued = bytearray(len(load))
        for parent in turns.parents:
            if parent != NO_PARENT:
                self._continued[parent] = 1
        system_blocks = options.system_tokens // PREFIX_BLOCK_TOKENS if options.cached_share else 0
        self._system = tuple(range(system_blocks))
        self._blocks_of: dict[int, Sequence[int]] = {}  # of requests whose next turn has not arrived

    def take(self, number: int) -> TraceRequest:
        """Returns the request with this number. Each is taken once, in order of arrival."""
        load, parent = self._load, self._parents[number]
        prompt = load.prompts[number]
        count = -(-prompt // PREFIX_BLOCK_TOKENS)
        if parent == NO_PARENT:
            begin: Sequence[int] = self._system
        else:
            begin = self._blocks_of.pop(parent)[: load.prompts[parent] // PREFIX_BLOCK_TOKENS]
        full = prompt // PREFIX_BLOCK_TOKENS
        shared = tuple(begin[:full])
        first_own = (number + 1) << _REQUEST_SHIFT
        blocks = shared + tuple(range(first_own + len(shared), first_own + count))
        if self._continued[number]:
            self._blocks_of[number] = blocks
        return TraceRequest(str(number), load.arrivals[number], prompt, load.outputs[number], blocks)

    def prefix_chain(self, request: TraceRequest) -> PrefixChain:
        return trace_chain(
            request.blocks,
            request.prompt_tokens,
            secret=self._chain_secret,
            seed=self._chain_seed,
            block_tokens=PREFIX_BLOCK_TOKENS,
        )

    def block_keys(self, request: TraceRequest) -> tuple[int, ...]:
        return trace_keys(
            request.blocks,
            request.prompt_tokens,
            PREFIX_BLOCK_TOKENS,
            trace_block_tokens=PREFIX_BLOCK_TOKENS,
        )
