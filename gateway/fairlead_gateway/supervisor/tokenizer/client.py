"""The helper's side of the tokenizing process: it is started with the first question, asked one thing at a time, and replaced when it
is late, dies or talks nonsense. Nothing of a request waits for any of it.

A question that ends the process makes its file wait, longer each time, and not the other files: another process answers those.
"""

import asyncio
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from fairlead.errors import Unavailable
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.supervisor.tokenizer.protocol import LENGTH_BYTES, TokenizeReply, TokenizeRequest, encode_frame

COMMAND: Final = (sys.executable, "-m", "fairlead_gateway.supervisor.tokenizer.process")
_PASSED_VARIABLES: Final = frozenset({"PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "HOME", "LANG"})
"""Of the gateway's environment; its secrets stay where they are."""
_MAX_FILES: Final = 4_096


@dataclass(slots=True)
class _FileFailures:
    """A file with which the process ended: how often in a row, until when it is not asked about, why."""

    count: int
    until: float
    reason: str


class TokenizerClient:
    """``command`` starts the process."""

    def __init__(
        self, clock: Clock, limits: Limits, environ: Mapping[str, str], *, command: Sequence[str] = COMMAND
    ) -> None:
        self._clock = clock
        self._limits = limits
        self._environ = {name: value for name, value in environ.items() if name in _PASSED_VARIABLES}
        self._command = tuple(command)
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._request_number = 0
        self._failures: dict[str, _FileFailures] = {}
        self._warnings: dict[str, str] = {}
        self.start_count = 0

    async def tokenize(self, path: str, text: bytes, *, add_special_tokens: bool) -> "array[int]":
        """The tokens of a JSON string by the tokenizer in that file. Raises Unavailable, whose words hold none of it."""
        self._check_usable(path)
        if self._waiting >= self._limits.tokenizing_pending:
            raise Unavailable("too many prompts wait for the tokenizing process")
        self._waiting += 1
        try:
            async with self._lock:
                self._check_usable(path)  # the one before may have been its last
                answer = await self._query(path, text, add_special_tokens)
        finally:
            self._waiting -= 1
        self._failures.pop(path, None)
        self._warnings.pop(path, None)
        if answer.note:
            self._warnings[path] = answer.note
        if answer.problem:
            raise Unavailable(answer.problem)
        found = array("I")
        found.frombytes(answer.tokens)
        return found

    def warning(self, path: str) -> str:
        """What is worth telling people of a file's tokenizer."""
        return self._warnings.get(path, "")

    async def close(self) -> None:
        """End the process."""
        await self._end()

    # --- inside ---------------------------------------------------------------------------------------------------------

    def _check_usable(self, path: str) -> None:
        trouble = self._failures.get(path)
        if trouble is not None and self._clock.now() < trouble.until:
            raise Unavailable(trouble.reason)

    async def _query(self, path: str, text: bytes, special: bool) -> TokenizeReply:
        self._request_number += 1
        try:
            async with asyncio.timeout(self._limits.tokenizing_seconds):
                return await self._exchange(TokenizeRequest(self._request_number, path, text, special))
        except TimeoutError:
            why = f"the tokenizing process gave no answer within {self._limits.tokenizing_seconds:g} s"
        except (OSError, EOFError, msgspec.MsgspecError) as error:
            why = "the tokenizing process ended" if isinstance(error, EOFError | ConnectionError) else _describe(error)
        except BaseException:
            await self._end()  # whose answer is on its way, nobody will read
            raise
        await self._end()
        before = self._failures.pop(path, None)
        times = 1 if before is None else before.count + 1
        while len(self._failures) >= _MAX_FILES:
            del self._failures[next(iter(self._failures))]
        pause = min(self._limits.tokenizing_pause_seconds, 2.0 ** (times - 1))
        self._failures[path] = _FileFailures(times, self._clock.now() + pause, why)
        raise Unavailable(why)

    async def _exchange(self, question: TokenizeRequest) -> TokenizeReply:
        process = await self._ensure_process()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(encode_frame(question))
        await process.stdin.drain()
        size = int.from_bytes(await process.stdout.readexactly(LENGTH_BYTES), "big")
        if size > self._limits.tokenize_response_bytes:
            raise msgspec.ValidationError("the tokenizing process answered too much")
        answer = msgspec.msgpack.decode(await process.stdout.readexactly(size), type=TokenizeReply)
        if answer.number != question.number or len(answer.tokens) % array("I").itemsize:
            raise msgspec.ValidationError("the tokenizing process answered something else")
        return answer

    async def _ensure_process(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is not None:
            await self._end()
        if self._process is None:
            self.start_count += 1
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,  # a traceback may hold a prompt
                env=self._environ,
            )
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, msgspec.ValidationError) else f"no tokenizing process: {error}"
