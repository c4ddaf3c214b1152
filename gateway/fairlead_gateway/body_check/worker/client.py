"""A worker's client of its checking process.

Why a process: parsing holds the interpreter's lock. A thread that parses 2 million token ids keeps
the event loop waiting for 0.2 s. The exchange with a process does not hold the lock.
"""

import os
import sys
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Raw

from fairlead.limits import Limits
from fairlead_gateway.body_check.messages import BodyProblem, BodyQuery, BodyReply, encode_limits
from fairlead_gateway.dialects.completions import CompletionRequest
from fairlead_gateway.dialects.embeddings import EmbeddingRequest
from fairlead_gateway.dialects.schemas import CommonFields
from fairlead_gateway.dialects.table import BODY_DECODERS
from fairlead_gateway.errors import BadRequest, Overloaded
from fairlead_gateway.ipc.child_process import ChildProcess
from fairlead_gateway.openai.body_parser import ModelRequest, parsed_checked_body

COMMAND: Final = (sys.executable, "-m", "fairlead_gateway.body_check.process")


class BodyChecker:
    """The client of one checking process, to be used from one thread; `command` starts it."""

    def __init__(self, limits: Limits, *, command: Sequence[str] = COMMAND) -> None:
        self._child = ChildProcess(
            "checking",
            (*command, encode_limits(limits)),
            os.environ,
            reply_seconds=limits.body_check_seconds,
            max_reply_bytes=limits.body_bytes,
        )

    def parse_body(self, kind: type[CommonFields], body: bytes, *, wants_bounds: bool = False) -> ModelRequest:
        """Parses a body as `kind`.

        wants_bounds: the result has its `bounds`, which strict limits read.

        Raises BadRequest, which names the field, and Overloaded if the body cannot be checked.
        """
        reply = self._check(BodyQuery(kind.__name__, len(body), wants_bounds), body)
        fields: CommonFields = BODY_DECODERS[kind].decode(reply.fields)
        if isinstance(fields, CompletionRequest):
            fields.prompt = Raw(memoryview(body)[reply.prompt_start : reply.prompt_end])
        elif isinstance(fields, EmbeddingRequest):
            fields.input = Raw(memoryview(body)[reply.prompt_start : reply.prompt_end])
        parsed = parsed_checked_body(fields, body, {name: Raw(value) for name, value in reply.members.items()})
        parsed.set_cache_variant(reply.cache_variant)
        parsed.bounds = reply.bounds
        parsed.context = [body[start:end] for start, end in reply.context]
        parsed.repeated_bytes, parsed.prompts, parsed.items = reply.repeated_bytes, reply.prompts, reply.items
        if reply.prompt_end:
            parsed.messages_start, parsed.messages_end = reply.prompt_start + 1, reply.prompt_end - 1
        return parsed

    def close(self) -> None:
        self._child.close()

    def _check(self, query: BodyQuery, body: bytes) -> BodyReply:
        try:
            reply = self._child.exchange(query, BodyReply, body)
        except (OSError, EOFError, msgspec.MsgspecError):
            raise Overloaded("the body could not be checked", hint="try again", retry_after=1) from None
        if reply.problem is not None:
            raise _bad_request(reply.problem)
        return reply


def _bad_request(problem: BodyProblem) -> BadRequest:
    error = BadRequest(problem.message, param=problem.param, code=problem.code, hint=problem.hint)
    error.repairs = problem.repairs
    return error
