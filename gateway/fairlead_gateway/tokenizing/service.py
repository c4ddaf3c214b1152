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

from fairlead.clock import Clock
from fairlead.errors import Unavailable
from fairlead.limits import Limits
from fairlead_gateway.tokenizing.wire import HEAD, Answer, Question, framed

COMMAND: Final = (sys.executable, "-m", "fairlead_gateway.tokenizing.process")
_PASSED: Final = frozenset({"PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "HOME", "LANG"})
"""Of the gateway's environment; its secrets stay where they are."""
_FILES_MOST: Final = 4_096


@dataclass(slots=True)
class _Trouble:
    """A file with which the process ended: how often in a row, until when it is not asked about, why."""

    times: int
    until: float
    why: str


class Tokenizing:
    """``command`` starts the process."""

    def __init__(
        self, clock: Clock, limits: Limits, environ: Mapping[str, str], *, command: Sequence[str] = COMMAND
    ) -> None:
        self._clock = clock
        self._limits = limits
        self._environ = {name: value for name, value in environ.items() if name in _PASSED}
        self._command = tuple(command)
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._number = 0
        self._troubles: dict[str, _Trouble] = {}
        self._notes: dict[str, str] = {}
        self.starts = 0

    async def tokens(self, path: str, text: bytes, *, special: bool) -> "array[int]":
        """The tokens of a JSON string by the tokenizer in that file. Raises Unavailable, whose words hold none of it."""
        self._check(path)
        if self._waiting >= self._limits.tokenizing_waiting:
            raise Unavailable("too many prompts wait for the tokenizing process")
        self._waiting += 1
        try:
            async with self._turn:
                self._check(path)  # the one before may have been its last
                answer = await self._asked(path, text, special)
        finally:
            self._waiting -= 1
        self._troubles.pop(path, None)
        self._notes.pop(path, None)
        if answer.note:
            self._notes[path] = answer.note
        if answer.problem:
            raise Unavailable(answer.problem)
        found = array("I")
        found.frombytes(answer.tokens)
        return found

    def note(self, path: str) -> str:
        """What is worth telling people of a file's tokenizer."""
        return self._notes.get(path, "")

    async def close(self) -> None:
        """End the process."""
        await self._end()

    # --- inside ---------------------------------------------------------------------------------------------------------

    def _check(self, path: str) -> None:
        trouble = self._troubles.get(path)
        if trouble is not None and self._clock.now() < trouble.until:
            raise Unavailable(trouble.why)

    async def _asked(self, path: str, text: bytes, special: bool) -> Answer:
        self._number += 1
        try:
            async with asyncio.timeout(self._limits.tokenizing_seconds):
                return await self._exchanged(Question(self._number, path, text, special))
        except TimeoutError:
            why = f"the tokenizing process gave no answer within {self._limits.tokenizing_seconds:g} s"
        except (OSError, EOFError, msgspec.MsgspecError) as error:
            why = "the tokenizing process ended" if isinstance(error, EOFError | ConnectionError) else _words(error)
        except BaseException:
            await self._end()  # whose answer is on its way, nobody will read
            raise
        await self._end()
        before = self._troubles.pop(path, None)
        times = 1 if before is None else before.times + 1
        while len(self._troubles) >= _FILES_MOST:
            del self._troubles[next(iter(self._troubles))]
        pause = min(self._limits.tokenizing_pause_seconds, 2.0 ** (times - 1))
        self._troubles[path] = _Trouble(times, self._clock.now() + pause, why)
        raise Unavailable(why)

    async def _exchanged(self, question: Question) -> Answer:
        process = await self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(framed(question))
        await process.stdin.drain()
        size = int.from_bytes(await process.stdout.readexactly(HEAD), "big")
        if size > self._limits.link_answer_bytes:
            raise msgspec.ValidationError("the tokenizing process answered too much")
        answer = msgspec.msgpack.decode(await process.stdout.readexactly(size), type=Answer)
        if answer.number != question.number or len(answer.tokens) % array("I").itemsize:
            raise msgspec.ValidationError("the tokenizing process answered something else")
        return answer

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is not None:
            await self._end()
        if self._process is None:
            self.starts += 1
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


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, msgspec.ValidationError) else f"no tokenizing process: {error}"
