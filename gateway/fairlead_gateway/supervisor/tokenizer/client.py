"""The client of the tokenizing process, in the supervisor.

The first query starts the process. It gets one query at a time, and is replaced if it is late,
exits or sends an invalid reply. No request waits for it.

A query that ends the process blocks its file for a while, longer each time. Queries for other files
go on, to a new process.
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
from fairlead_gateway.supervisor.kv_index.tokenize_api import TOKENIZE_RESPONSE_BYTES
from fairlead_gateway.supervisor.tokenizer.protocol import LENGTH_BYTES, TokenizeReply, TokenizeRequest, encode_frame

TOKENIZING_PAUSE_SECONDS: Final = 60.0
"""Limit: longest pause before a file that crashed it is tried again, after 1 s, 2 s and so on."""

COMMAND: Final = (sys.executable, "-m", "fairlead_gateway.supervisor.tokenizer.process")
_PASSED_VARIABLES: Final = frozenset({"PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "HOME", "LANG"})
"""Environment variables of the gateway that the process gets; secrets are not among them."""
_MAX_FILES: Final = 4_096


@dataclass(slots=True)
class _FileFailures:
    """The failures of a file: number in a row, the time until which it is blocked, the reason."""

    count: int
    until: float
    reason: str


class TokenizerClient:
    """The client of one tokenizing process; `command` starts it."""

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
        """Returns the tokens of a JSON string by the tokenizer in a file.

        Raises Unavailable; the message contains nothing of the text.
        """
        self._check_usable(path)
        if self._waiting >= self._limits.tokenizing_pending:
            raise Unavailable("too many prompts wait for the tokenizing process")
        self._waiting += 1
        try:
            async with self._lock:
                self._check_usable(path)  # the query before may have blocked the file
                reply = await self._query(path, text, add_special_tokens)
        finally:
            self._waiting -= 1
        self._failures.pop(path, None)
        self._warnings.pop(path, None)
        if reply.note:
            self._warnings[path] = reply.note
        if reply.problem:
            raise Unavailable(reply.problem)
        tokens = array("I")
        tokens.frombytes(reply.tokens)
        return tokens

    def warning(self, path: str) -> str:
        """Returns the warning about a file's tokenizer; empty if there is none."""
        return self._warnings.get(path, "")

    async def close(self) -> None:
        """Ends the process."""
        await self._end()

    # --- internal

    def _check_usable(self, path: str) -> None:
        failures = self._failures.get(path)
        if failures is not None and self._clock.now() < failures.until:
            raise Unavailable(failures.reason)

    async def _query(self, path: str, text: bytes, special: bool) -> TokenizeReply:
        self._request_number += 1
        try:
            process = await self._ensure_process()  # a start that is cancelled leaves its process behind
            async with asyncio.timeout(self._limits.tokenizing_seconds):
                return await self._exchange(process, TokenizeRequest(self._request_number, path, text, special))
        except TimeoutError:
            reason = f"the tokenizing process gave no answer within {self._limits.tokenizing_seconds:g} s"
        except (OSError, EOFError, msgspec.MsgspecError) as error:
            ended = isinstance(error, EOFError | ConnectionError)
            reason = "the tokenizing process ended" if ended else _describe(error)
        except BaseException:
            await self._end()  # nothing will read the reply that is still to come
            raise
        await self._end()
        previous = self._failures.pop(path, None)
        count = 1 if previous is None else previous.count + 1
        while len(self._failures) >= _MAX_FILES:
            del self._failures[next(iter(self._failures))]
        pause = min(TOKENIZING_PAUSE_SECONDS, 2.0 ** (count - 1))
        self._failures[path] = _FileFailures(count, self._clock.now() + pause, reason)
        raise Unavailable(reason)

    async def _exchange(self, process: asyncio.subprocess.Process, request: TokenizeRequest) -> TokenizeReply:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(encode_frame(request))
        await process.stdin.drain()
        size = int.from_bytes(await process.stdout.readexactly(LENGTH_BYTES), "big")
        if size > TOKENIZE_RESPONSE_BYTES:
            raise msgspec.ValidationError("the tokenizing process sent a reply that is too large")
        reply = msgspec.msgpack.decode(await process.stdout.readexactly(size), type=TokenizeReply)
        if reply.number != request.number or len(reply.tokens) % array("I").itemsize:
            raise msgspec.ValidationError("the tokenizing process sent a reply to another query")
        return reply

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
