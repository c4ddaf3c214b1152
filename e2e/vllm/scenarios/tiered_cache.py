"""An engine that keeps what the GPU has no room for in the machine's memory: vLLM's own offloading,
events of both tiers."""

from collections.abc import Awaitable, Callable

from e2e.vllm.observation.index_under_test import TokenPrompt, tokens
from e2e.vllm.observation.observed_engine import ObservedEngine
from e2e.vllm.report import Numbers, require
from e2e.vllm.scenarios.concurrent_traffic import LONG, mixed_prompts
from fairlead_kvstore.blockstore.storage_tiers import StorageTier

PROMPT = 1_500
MIXED = 200


class TieredCache:
    """The scenarios. The device has room for three of the prompts, the tier for a little more."""

    def __init__(self, at: ObservedEngine) -> None:
        self._at = at

    def story(self) -> list[tuple[str, Callable[[], Awaitable[Numbers]]]]:
        """In order."""
        return [
            ("offloaded and found again", self._found_again),
            (f"{MIXED} mixed prompts, one at a time, two tiers", self._in_peace),
            ("a reset of the device alone", self._reset_device),
            ("a reset of both", self._reset_both),
        ]

    async def _found_again(self) -> Numbers:
        first = len(self._at.rows)
        for number in range(4):
            await self._at.send(TokenPrompt(tokens(("big", number), PROMPT)))
        await self._at.wait_until_quiet()
        prompt = TokenPrompt(tokens(("big", 0), PROMPT))
        index = next(iter(self._at.indexes.values()))
        device, both = self._at.predict(prompt, index, StorageTier.GPU), self._at.predict(prompt, index)
        await self._at.send(prompt)
        reported = self._at.rows[-1].reported
        require(device < both, f"nothing was only in the tier: {device} tokens on the device, {both} with the tier")
        for number in range(12):
            await self._at.send(TokenPrompt(tokens(("other", number), PROMPT)), keep=False)
        more = {"on_the_device": device, "with_the_tier": both, "reported": reported}
        return await self._at.expect_agreement(first, more)

    async def _in_peace(self) -> Numbers:
        first = len(self._at.rows)
        for prompt in mixed_prompts(MIXED, "tiers", step=LONG):
            await self._at.send(prompt, keep=False)
        return await self._at.expect_agreement(first, again=False)

    async def _reset_device(self) -> Numbers:
        """The engine's word for it names no tier. What the tier keeps is not announced again: hits
        are missed, none is made up."""
        prompts = [TokenPrompt(tokens(("big", number), PROMPT)) for number in range(4)]
        for prompt in prompts:
            await self._at.send(prompt)
        await self._at.wait_until_quiet()
        await self._at.post("/reset_prefix_cache")
        _, untold = self._at.tell_cleared()
        first = len(self._at.rows)
        for number, prompt in enumerate(prompts):
            await self._at.send(prompt, keep=False, excused=frozenset() if number else untold)
        rows = self._at.rows[first:]
        numbers = {
            "predicted": {name: sum(one.predicted[name] for one in rows) for name in self._at.indexes},
            "reported": sum(one.reported for one in rows),
            "requests": len(rows),
        }
        fair = all(
            one.predicted[name] <= one.reported for one in rows for name in self._at.indexes if name not in one.excused
        )
        require(fair, "it promised what is not there", numbers)
        return numbers

    async def _reset_both(self) -> Numbers:
        await self._at.wait_until_quiet()
        await self._at.post("/reset_prefix_cache?reset_external=true")
        _, untold = self._at.tell_cleared()
        first = len(self._at.rows)
        for turn, number in enumerate((0, 1, 0)):
            excused = frozenset() if turn else untold
            await self._at.send(TokenPrompt(tokens(("big", number), PROMPT)), excused=excused)
        return await self._at.expect_agreement(first)
