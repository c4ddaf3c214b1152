"""The cached tokens of a session's next prompt, exactly, where engines report their tokens.

The prefix index knows a prompt in blocks of kilobytes, and its tokens by a mean. The next turn of a
conversation holds the last prompt whole, and the engine has reported how many tokens that had.
Where a conversation begins, or moves, it meets what all share: its instructions and tools. Their
tokens are those that the engine last reported for a prompt that met the same blocks.
"""

from bisect import bisect_right
from collections.abc import Hashable
from typing import Final

from fairlead_gateway.routing.prefix.prefix_hash import PrefixChain

ENGINE_BLOCK_TOKENS: Final = 16
"""Engines cache whole blocks: of 16 tokens, by default of vLLM."""
PROMPTS_PER_SESSION: Final = 4
"""Conversations with the same session id, such as those of sub-agents."""


class ComputedPrompt:
    """A prompt that an engine has computed. `link` names its first `blocks` blocks."""

    __slots__ = ("blocks", "instance", "link", "output_tokens", "tokens")

    def __init__(self, instance: str, chain: PrefixChain, tokens: int, output_tokens: int) -> None:
        self.instance = instance
        self.blocks = len(chain.hashes)
        self.link = chain.hashes[-1] if chain.hashes else 0
        self.tokens = tokens
        self.output_tokens = output_tokens


class SessionPrompts:
    """The last computed prompts of the sessions of one model, the oldest sessions dropped.

    Clients send an answer back as it was, or changed, as without its reasoning. The last turn of
    any session shows which, and whether the tokens of answers count as cached.
    """

    def __init__(self, max_sessions: int) -> None:
        self._max_sessions = max_sessions
        self._sessions: dict[Hashable, list[ComputedPrompt]] = {}
        self._shared: dict[Hashable, int] = {}  # cached tokens, by the last block that was found
        self._keeps_answers = False

    def cached(self, session: Hashable, instance: str, chain: PrefixChain, matched_bytes: float) -> int | None:
        """Returns the tokens of this prompt that the instance should have.

        None if no engine has reported them for an earlier prompt that begins alike.

        matched_bytes: of the blocks that the index found there. With fewer than the session's last
            prompt has, the others were evicted.
        """
        blocks = _whole_blocks(chain, matched_bytes)
        found = self._longest(session, instance, chain)
        if found is not None and found.blocks <= blocks:
            tokens = found.tokens + (found.output_tokens if self._keeps_answers else 0)
            return tokens - tokens % ENGINE_BLOCK_TOKENS
        return self._shared.get(chain.hashes[blocks - 1]) if blocks else None

    def observe(
        self,
        session: Hashable,
        chain: PrefixChain,
        prompt: ComputedPrompt,
        cached_tokens: int | None,
        matched_bytes: float,
    ) -> None:
        """Records a computed prompt, with what the engine reported and the index had found."""
        if not prompt.blocks:
            return
        found = self._longest(session, prompt.instance, chain)
        prompts = self._sessions.pop(session, [])  # dictionary order is age
        if found is not None:
            if cached_tokens is not None and found.output_tokens >= 2 * ENGINE_BLOCK_TOKENS:
                self._keeps_answers = cached_tokens >= found.tokens + ENGINE_BLOCK_TOKENS
            prompts.remove(found)
        else:
            self._share(chain, cached_tokens, matched_bytes)
        if len(prompts) >= PROMPTS_PER_SESSION:
            del prompts[0]
        prompts.append(prompt)
        if len(self._sessions) >= self._max_sessions:
            del self._sessions[next(iter(self._sessions))]
        self._sessions[session] = prompts

    def _share(self, chain: PrefixChain, cached_tokens: int | None, matched_bytes: float) -> None:
        """Records what a prompt shared with those of other conversations."""
        blocks = _whole_blocks(chain, matched_bytes)
        if cached_tokens is None or not blocks:
            return
        link = chain.hashes[blocks - 1]
        self._shared.pop(link, None)
        if len(self._shared) >= self._max_sessions:
            del self._shared[next(iter(self._shared))]
        self._shared[link] = cached_tokens

    def _longest(self, session: Hashable, instance: str, chain: PrefixChain) -> ComputedPrompt | None:
        """Returns the session's longest prompt at the instance that begins this one."""
        longest: ComputedPrompt | None = None
        hashes = chain.hashes
        for prompt in self._sessions.get(session, ()):
            if (
                prompt.instance == instance
                and prompt.blocks <= len(hashes)
                and hashes[prompt.blocks - 1] == prompt.link
                and (longest is None or prompt.tokens > longest.tokens)
            ):
                longest = prompt
        return longest


def _whole_blocks(chain: PrefixChain, matched_bytes: float) -> int:
    return bisect_right(chain.ends, matched_bytes + 1.0)
