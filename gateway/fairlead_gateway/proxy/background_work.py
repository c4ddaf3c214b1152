"""Follows work that an engine goes on with after its answer: `background` of `/v1/responses`.

A request that may run on keeps its place, its sequence and its limits until the engine says that
the work has ended. The gateway polls for that, within the request's timeout. Then it books what the
engine reports. Work whose end is not seen is cancelled, and counts as the most that it may be.
"""

import asyncio
import re
from typing import Final

from fairlead_gateway.proxy.attempt import Attempt, parse_usage
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.upstream.connection_pool import ConnectionPool, EngineCallFailed, call_engine
from fairlead_gateway.upstream.request_encoder import request_prefix
from fairlead_gateway.upstream.response_schemas import stored_answer

_FIRST_POLL_SECONDS: Final = 0.25
_MAX_POLL_SECONDS: Final = 2.0
_CALL_SECONDS: Final = 5.0
_MAX_FAILURES: Final = 3
"""Polls in a row that may fail."""
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")


class BackgroundWork:
    """The stage that waits for the end of work whose answer has been sent.

    hop_id: this gateway, for the hop header.
    """

    def __init__(self, runtime: WorkerRuntime, pool: ConnectionPool, hop_id: str) -> None:
        self._now = runtime.now
        self._loop = runtime.loop
        self._pool = pool
        self._hop_id = hop_id
        self._cancels: set[asyncio.Task[None]] = set()

    async def follow(self, attempt: Attempt, body: bytes) -> None:
        """Waits for the end of the work behind an answer, and records its tokens.

        body: of the answer.
        """
        context, found = attempt.context, stored_answer(body)
        if found is None or _ID.fullmatch(found.id) is None:
            return
        poll_seconds, failures, is_unfinished = _FIRST_POLL_SECONDS, 0, found.is_unfinished
        end = self._now() if context.deadline is None else context.deadline - _MAX_POLL_SECONDS - _CALL_SECONDS
        try:
            while is_unfinished and failures < _MAX_FAILURES and self._now() < end:
                await asyncio.sleep(poll_seconds)
                poll_seconds = min(2.0 * poll_seconds, _MAX_POLL_SECONDS)
                try:
                    body = await self._call(attempt, "GET", found.id)
                except EngineCallFailed:
                    failures += 1
                    continue
                answer = stored_answer(body)
                failures = failures + 1 if answer is None else 0
                is_unfinished = answer is None or answer.is_unfinished
        finally:
            if is_unfinished:
                task = self._loop.create_task(self._cancel(attempt, found.id))
                self._cancels.add(task)
                task.add_done_callback(self._cancels.discard)
        usage, _ = parse_usage(body, is_named=True)
        if usage is not None and not is_unfinished:
            context.record_usage(usage)
            context.request.runs_on = False

    async def _cancel(self, attempt: Attempt, name: str) -> None:
        try:
            await self._call(attempt, "POST", f"{name}/cancel")
        except EngineCallFailed:
            pass  # the engine is gone, or has no such path

    async def _call(self, attempt: Attempt, method: str, name: str) -> bytes:
        instance = attempt.instance
        prefix = request_prefix(method, f"/v1/responses/{name}", instance.url, self._hop_id)
        length = "0\r\n" if prefix.has_body else ""
        message = [f"{prefix.text}{length}\r\n".encode("latin-1")]
        return await call_engine(
            self._pool, instance.address, message, _CALL_SECONDS, instance=instance, needs_core=False
        )
