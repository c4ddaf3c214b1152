"""The client of the tokenizing process, in the supervisor.

No request waits for the process.

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
from fairlead.runtime.clock import Clock
from fairlead_gateway.ipc.child_process import ChildProcess
from fairlead_gateway.kv_index.supervisor.tokenize_api import TOKENIZE_RESPONSE_BYTES
from fairlead_gateway.kv_index.tokenizer.messages import TokenizeReply, TokenizeRequest

TOKENIZING_PAUSE_SECONDS: Final = 60.0
"""Limit: longest pause before a file that crashed it is tried again, after 1 s, 2 s and so on."""
TOKENIZING_SECONDS: Final = 10.0
"""Limit: a reply of the tokenizer process, including the loading of a tokenizer; then it is
replaced.
"""
TOKENIZING_PENDING: Final = 64
"""Limit: prompts that wait for that process; more are not tokenized there."""

COMMAND: Final = (sys.executable, "-m", "fairlead_gateway.kv_index.tokenizer.process")
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
        self,
        clock: Clock,
        environ: Mapping[str, str],
        *,
        command: Sequence[str] = COMMAND,
        reply_seconds: float = TOKENIZING_SECONDS,
        max_waiting: int = TOKENIZING_PENDING,
    ) -> None:
        self._clock = clock
        self._reply_seconds, self._max_waiting = reply_seconds, max_waiting
        self._child = ChildProcess(
            "tokenizing",
            command,
            environ,
            reply_seconds=reply_seconds,
            max_reply_bytes=TOKENIZE_RESPONSE_BYTES,
        )
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._request_number = 0
        self._failures: dict[str, _FileFailures] = {}
        self._warnings: dict[str, str] = {}

    async def tokenize(self, path: str, text: bytes, *, add_special_tokens: bool) -> "array[int]":
        """Returns the tokens of a JSON string by the tokenizer in a file.

        Raises Unavailable; the message contains nothing of the text.
        """
        self._check_usable(path)
        if self._waiting >= self._max_waiting:
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
        await asyncio.to_thread(self._child.close)

    def _check_usable(self, path: str) -> None:
        failures = self._failures.get(path)
        if failures is not None and self._clock.now() < failures.until:
            raise Unavailable(failures.reason)

    async def _query(self, path: str, text: bytes, special: bool) -> TokenizeReply:
        self._request_number += 1
        request = TokenizeRequest(self._request_number, path, text, special)
        try:
            reply = await asyncio.to_thread(self._child.exchange, request, TokenizeReply)
            if reply.number == request.number and not len(reply.tokens) % array("I").itemsize:
                return reply
            reason = "the tokenizing process sent a reply to another query"
        except TimeoutError:
            reason = f"the tokenizing process gave no answer within {self._reply_seconds:g} s"
        except (EOFError, ConnectionError):
            reason = "the tokenizing process ended"
        except msgspec.ValidationError as error:
            reason = str(error)
        except (OSError, msgspec.MsgspecError) as error:
            reason = f"no tokenizing process: {error}"
        except BaseException:
            await asyncio.to_thread(self._child.end)  # nothing will read the reply that is still to come
            raise
        await asyncio.to_thread(self._child.end)
        previous = self._failures.pop(path, None)
        count = 1 if previous is None else previous.count + 1
        while len(self._failures) >= _MAX_FILES:
            del self._failures[next(iter(self._failures))]
        pause = min(TOKENIZING_PAUSE_SECONDS, 2.0 ** (count - 1))
        self._failures[path] = _FileFailures(count, self._clock.now() + pause, reason)
        raise Unavailable(reason)
