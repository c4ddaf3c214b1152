"""A conversation with a model through the gateway: streamed answers, history, and the id of the
last request.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import msgspec

from fairlead.errors import FairleadError
from fairlead_cli.errors import StackUnreachable

CONNECT_TIMEOUT_SECONDS = 5.0


class AnswerError(FairleadError):
    """Raised when the gateway answers with an error, or a stream ends with one."""


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class _StreamChoice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()


class _StreamError(msgspec.Struct, frozen=True):
    message: str = ""
    hint: str | None = None


class _StreamEvent(msgspec.Struct, frozen=True):
    choices: tuple[_StreamChoice, ...] = ()
    error: _StreamError | None = None


class _ModelList(msgspec.Struct, frozen=True):
    class Card(msgspec.Struct, frozen=True):
        id: str

    data: tuple[Card, ...] = ()


@dataclass(slots=True)
class LastAnswer:
    """Metadata of the last answer."""

    was_sent: bool = False
    request_id: str | None = None
    instance: str | None = None
    reason: str | None = None
    ttft_seconds: float | None = None


class Conversation:
    """A conversation; ``url`` is the gateway's, with or without ``/v1``. Use as a context manager.

    verify: check the certificate of the gateway.
    """

    def __init__(
        self,
        url: str,
        model: str | None,
        *,
        key: str | None = None,
        system: str | None = None,
        max_tokens: int | None = None,
        verify: bool = True,
    ) -> None:
        self.base = url.rstrip("/").removesuffix("/v1")
        self.last_answer = LastAnswer()
        self._max_tokens = max_tokens
        self._system = system
        self._messages: list[dict[str, str]] = []
        self._client = httpx.Client(
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_SECONDS),
            trust_env=False,
            verify=verify and self.base.startswith("https:"),
        )
        self.reset()
        try:
            self.model = model or self._only_model()
        except BaseException:
            self._client.close()
            raise

    def __enter__(self) -> "Conversation":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def reset(self) -> None:
        """Forgets all messages but the system message."""
        self._messages = [{"role": "system", "content": self._system}] if self._system else []

    def send(self, text: str) -> Iterator[str]:
        """Sends a message and yields the answer piece by piece. An incomplete answer stays in the
        history.

        Raises AnswerError when the gateway reports an error or the answer breaks off,
        StackUnreachable when no gateway answers.
        """
        self._messages.append({"role": "user", "content": text})
        body: dict[str, object] = {"model": self.model, "messages": self._messages, "stream": True}
        if self._max_tokens is not None:
            body["max_tokens"] = self._max_tokens
        received: list[str] = []
        self.last_answer = LastAnswer(was_sent=True)
        started = time.monotonic()
        try:
            for piece in self._pieces(body):
                if self.last_answer.ttft_seconds is None:
                    self.last_answer.ttft_seconds = time.monotonic() - started
                received.append(piece)
                yield piece
        finally:
            if received:
                self._messages.append({"role": "assistant", "content": "".join(received)})
            else:
                self._messages.pop()

    def _pieces(self, body: dict[str, object]) -> Iterator[str]:
        try:
            with self._client.stream("POST", f"{self.base}/v1/chat/completions", json=body) as answer:
                self.last_answer.request_id = answer.headers.get("x-request-id")
                self.last_answer.instance = answer.headers.get("x-fairlead-instance")
                self.last_answer.reason = answer.headers.get("x-fairlead-reason")
                if answer.status_code != 200:
                    refusal = _refusal(answer.status_code, answer.read())
                    if self.last_answer.instance is None and answer.status_code == 404:
                        refusal.hint = refusal.hint or "is this the address for clients? `fairlead up` prints two"
                    raise refusal
                yield from self._events(answer)
        except httpx.ConnectError as error:
            raise StackUnreachable(
                f"{self.base} does not answer", hint="if no stack runs, start one with `fairlead up`"
            ) from error
        except httpx.HTTPError as error:
            raise AnswerError(f"the answer broke off: {type(error).__name__}") from error

    def _events(self, answer: httpx.Response) -> Iterator[str]:
        for line in answer.iter_lines():
            data = line.removeprefix("data:").strip()
            if not line.startswith("data:") or not data:
                continue
            if data == "[DONE]":
                return
            try:
                piece = msgspec.json.decode(data, type=_StreamEvent)
            except msgspec.DecodeError as error:
                raise AnswerError(f"the answer is not a stream of a chat completion: {error}") from error
            if piece.error is not None:
                raise AnswerError(piece.error.message, hint=piece.error.hint)
            for choice in piece.choices[:1]:
                if choice.delta.content:
                    yield choice.delta.content
        raise AnswerError("the answer ended without [DONE]")

    def _only_model(self) -> str:
        try:
            answer = self._client.get(f"{self.base}/v1/models", timeout=CONNECT_TIMEOUT_SECONDS)
        except httpx.HTTPError as error:
            raise StackUnreachable(
                f"{self.base} does not answer", hint="if no stack runs, start one with `fairlead up`"
            ) from error
        if answer.status_code != 200:
            raise _refusal(answer.status_code, answer.content)
        try:
            names = [card.id for card in msgspec.json.decode(answer.content, type=_ModelList).data]
        except msgspec.DecodeError as error:
            raise StackUnreachable(f"{self.base} is not an OpenAI-compatible gateway: {error}") from error
        if len(names) != 1:
            raise AnswerError("say which model to chat with", hint=f"there are: {', '.join(names) or 'none'}")
        return names[0]


def _refusal(status: int, body: bytes) -> AnswerError:
    try:
        error = msgspec.json.decode(body, type=_StreamEvent).error
    except msgspec.DecodeError:
        error = None
    if error is None or not error.message:
        return AnswerError(f"the gateway answered {status}: {json.dumps(body[:200].decode(errors='replace'))}")
    return AnswerError(f"{error.message} [{status}]", hint=error.hint)
