"""``fairlead chat``: a dialogue with a model through the gateway."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final

import httpx
import msgspec
from cyclopts import Parameter

from fairlead import management_api as api
from fairlead.errors import BadInput, FairleadError
from fairlead.settings import CliSettings, read_settings
from fairlead_cli import formatting
from fairlead_cli.addresses import service_url
from fairlead_cli.console import terminal_text
from fairlead_cli.exit_codes import (
    OK,
    PROBLEM,
    UNREACHABLE,
    USAGE,
    ClusterUnreachable,
    StackUnreachable,
    report_failure,
)
from fairlead_cli.formatting import format_seconds, short_instance_name
from fairlead_cli.local.run_directory import RunningStack, newest_stack, running_stacks
from fairlead_cli.management.client import ManagementEndpoint, gateway_endpoints
from fairlead_cli.target import ClusterOptions, ModelFlag, is_cluster_target, qualified_name

CONNECT_TIMEOUT_SECONDS = 5.0

_CLUSTER = ClusterOptions()

DIALOGUE_HELP = "/why  why the last request went where it did\n/new  forget the conversation\n/quit or Ctrl-D  leave"

_KNOWN_INPUTS: Final[Mapping[str, Callable[[float | None], str]]] = {
    "matched_tokens": lambda value: f"{formatting.format_count(value)} tokens cached",
    "backlog_seconds": lambda value: f"backlog {formatting.format_seconds(value)}",
    "predicted_ttft_seconds": lambda value: f"first token predicted in {formatting.format_seconds(value)}",
}


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
            raise self._unreachable() from error
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

    def _unreachable(self) -> StackUnreachable:
        return StackUnreachable(f"{self.base} does not answer", hint="if no stack runs, start one with `fairlead up`")

    def _only_model(self) -> str:
        try:
            answer = self._client.get(f"{self.base}/v1/models", timeout=CONNECT_TIMEOUT_SECONDS)
        except httpx.HTTPError as error:
            raise self._unreachable() from error
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


@dataclass(frozen=True, slots=True)
class ChatGateway:
    """A gateway: its URL, the API key, and its management APIs, which ``/why`` opens.

    is_forwarded: its port was forwarded to this machine, so that no certificate names its address.
    qualify_model: returns the name by which the gateway knows a model.
    """

    url: str
    key: str | None
    endpoints: Callable[[], Sequence[ManagementEndpoint]]
    is_forwarded: bool = False
    qualify_model: Callable[[str], str] = str


@contextmanager
def open_gateway(url: str | None, manage: str | None, cluster: ClusterOptions) -> Iterator[ChatGateway]:
    """Yields the gateway at ``url``, of a cluster, or of the newest stack on this machine.

    manage: management address of the gateway, for ``/why``.

    Raises StackUnreachable or ClusterUnreachable, and BadInput for an invalid address or a missing
    permission.
    """
    settings = read_settings(CliSettings, os.environ)
    if not is_cluster_target(cluster, url or manage, "--url" if url else "--manage"):
        address = service_url(url, flag="--url") if url else newest_stack().url
        yield ChatGateway(address, settings.api_key, lambda: [_local_endpoint(address, manage, settings.manage_token)])
        return
    from fairlead_cli.cluster.installation import open_installation

    with open_installation(cluster) as installation:
        key = settings.api_key or installation.api_key()
        endpoints = partial(gateway_endpoints, installation, settings.manage_token)
        url = installation.client_url()
        yield ChatGateway(url, key, endpoints, is_forwarded=True, qualify_model=installation.qualify_model)


def local_stack(url: str) -> RunningStack | None:
    """Returns the running stack of this user whose gateway is at ``url``, or None."""
    return next((stack for stack in running_stacks() if stack.url == url.rstrip("/").removesuffix("/v1")), None)


def _local_endpoint(url: str, manage: str | None, token: str | None) -> ManagementEndpoint:
    stack = local_stack(url)
    if not manage and stack is None:
        raise StackUnreachable("the management address of this gateway is not known", hint="give it with --manage")
    address = service_url(manage, flag="--manage") if manage else stack.manage if stack else ""
    return ManagementEndpoint(address, lambda: address, token)


@dataclass(frozen=True, slots=True)
class ChatSource:
    """Flags that select the gateway: by its address, or by its cluster."""

    url: Annotated[
        str | None, Parameter(help="The gateway. Default: that of the running `fairlead up`, else of the cluster.")
    ] = None
    manage: Annotated[str | None, Parameter(help="Its management address, for /why.")] = None
    cluster: Annotated[ClusterOptions, Parameter(name="*")] = _CLUSTER


_DEFAULTS = ChatSource()


def chat(
    model: ModelFlag = None,
    *,
    message: Annotated[str | None, Parameter(help="Send this message, print the answer and exit.")] = None,
    system: Annotated[str | None, Parameter(help="A system message.")] = None,
    max_tokens: Annotated[int | None, Parameter(help="Maximum length of the answer, in tokens.")] = None,
    source: Annotated[ChatSource, Parameter(name="*")] = _DEFAULTS,
) -> int:
    """Chat with a model. Piped text, or --message, is sent once; otherwise a dialogue: /why, /new,
    /quit.

    Exits 0 when answered, 1 on an error answer, 2 on wrong usage, 3 when no gateway can be reached.
    """
    name = qualified_name(model, source.cluster.namespace)
    try:
        with (
            open_gateway(source.url, source.manage, source.cluster) as gateway,
            Conversation(
                gateway.url,
                name and gateway.qualify_model(name),
                key=gateway.key,
                system=system,
                max_tokens=max_tokens,
                verify=not gateway.is_forwarded,
            ) as conversation,
        ):
            if message is not None or not sys.stdin.isatty():
                return _once(conversation, sys.stdin.read() if message is None else message)
            return _dialogue(conversation, gateway)
    except BadInput:
        raise  # wrong usage
    except (StackUnreachable, ClusterUnreachable) as error:
        return report_failure(error, UNREACHABLE)
    except FairleadError as error:
        return report_failure(error, PROBLEM)


def _once(conversation: Conversation, text: str) -> int:
    if not text.strip():
        print("fairlead: there is no message to send: stdin or --message is empty", file=sys.stderr)
        return USAGE
    has_output = False
    try:
        for piece in conversation.send(text):
            print(terminal_text(piece) if sys.stdout.isatty() else piece, end="", flush=True)
            has_output = True
    except KeyboardInterrupt:
        return 130
    finally:
        if has_output:
            with contextlib.suppress(OSError):
                print(flush=True)
    return OK


def _dialogue(conversation: Conversation, gateway: ChatGateway) -> int:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history for input())
    dim, plain = ("\033[2m", "\033[0m") if _colours() else ("", "")

    def write(text: str) -> None:
        print(terminal_text(text), end="", flush=True)

    def remark(text: str) -> None:
        print(f"{dim}{terminal_text(text)}{plain}", flush=True)

    stack = local_stack(conversation.base)
    simulated = " · simulated: the words are made up" if stack and stack.simulated else ""
    remark(f"{conversation.model} at {conversation.base}{simulated} · /why, /new, /quit")
    terminal = Terminal(lambda: input("> "), write, remark)
    return run_dialogue(conversation, terminal, lambda request_id: _why(gateway, request_id))


def _why(gateway: ChatGateway, request_id: str) -> list[str]:
    """Returns the decision as text.

    Raises LookupError when no gateway has it any more, StackUnreachable when no management address
    is known.
    """
    for endpoint in gateway.endpoints():
        with contextlib.suppress(LookupError):
            return summarize_decision(endpoint.query(lambda client: client.decision(request_id)))
    raise LookupError(request_id)


def _colours() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


@dataclass(frozen=True, slots=True)
class Terminal:
    """The terminal of a dialogue, as functions. ``read`` raises EOFError at the end of input;
    ``write`` gets pieces of text, ``remark`` whole lines.
    """

    read: Callable[[], str]
    write: Callable[[str], None]
    remark: Callable[[str], None]


def run_dialogue(conversation: Conversation, terminal: Terminal, explain: Callable[[str], list[str]]) -> int:
    """Runs the dialogue until ``/quit`` or the end of input; returns the exit code.

    explain: returns the lines that explain a request id (``/why``).
    """
    while True:
        try:
            text = terminal.read().strip()
        except (EOFError, KeyboardInterrupt):
            terminal.remark("")
            return 0
        if text in ("/quit", "/exit", "/q"):
            return 0
        if text == "/why":
            _print_explanation(conversation, terminal, explain)
        elif text == "/new":
            conversation.reset()
            terminal.remark("forgotten")
        elif text.startswith("/"):
            terminal.remark(DIALOGUE_HELP)
        elif text:
            _print_answer(conversation, terminal, text)


def _print_answer(conversation: Conversation, terminal: Terminal, text: str) -> None:
    answer: Iterator[str] = conversation.send(text)
    has_output = False
    try:
        for piece in answer:
            terminal.write(piece)
            has_output = True
        terminal.write("\n")
    except KeyboardInterrupt:
        answer.close()  # type: ignore[attr-defined]  # a generator: closing it lets go of the connection, and the engine stops
        terminal.write("\n")
        terminal.remark("stopped")
        return
    except FairleadError as error:
        terminal.write("\n" if has_output else "")
        terminal.remark(str(error))
        return
    last = conversation.last_answer
    if last.instance:
        terminal.remark(
            f"{short_instance_name(last.instance)} · {last.reason or '?'} · first token {format_seconds(last.ttft_seconds)}"
        )


def _print_explanation(conversation: Conversation, terminal: Terminal, why: Callable[[str], list[str]]) -> None:
    request_id = conversation.last_answer.request_id
    if request_id is None:
        terminal.remark(
            "the last request reached no gateway" if conversation.last_answer.was_sent else "nothing was asked yet"
        )
        return
    try:
        terminal.remark("\n".join(why(request_id)))
    except LookupError:
        terminal.remark(f"the gateway has forgotten request {request_id}")
    except StackUnreachable as error:
        terminal.remark(str(error))


def summarize_decision(decision: api.DecisionOut) -> list[str]:
    """Returns one request as lines, from its first choice to its end."""
    tokens = f"about {decision.prompt_tokens:,.0f} prompt tokens"
    lines = [f"request {decision.request_id} to {decision.model.removeprefix('default/')}, {tokens}"]
    for choice in decision.choices:
        lines += _choice(choice, first=choice is decision.choices[0])
    lines.append(describe_outcome(decision.outcome))
    return lines


def _choice(choice: api.ChoiceOut, *, first: bool) -> list[str]:
    where = f"went to {short_instance_name(choice.instance)}" if choice.instance else "went nowhere"
    lines = [f"{'' if first else 'then '}{where}, by the rule {choice.rule}: {choice.reason}"]
    for candidate in choice.candidates:
        numbers = ", ".join(_inputs(candidate.inputs))
        mark = "√" if candidate.chosen else "·"
        why = "" if candidate.chosen else candidate.why
        details = "; ".join(part for part in (numbers, why) if part)
        lines.append(f"  {mark} {short_instance_name(candidate.id)}" + (f"  {details}" if details else ""))
    return lines


def _inputs(inputs: Mapping[str, api.NumberOut]) -> list[str]:
    return [say(inputs[name].value) for name, say in _KNOWN_INPUTS.items() if name in inputs]


def describe_outcome(outcome: api.OutcomeOut | None) -> str:
    """Returns the end of a request in one line."""
    if outcome is None:
        return "it is still running"
    parts = []
    if outcome.client_gone:
        parts.append("the client left")
    if outcome.error:
        parts.append(f"it failed with {outcome.status} ({outcome.error})")
    if outcome.ttft_seconds is not None:
        parts.append(f"first token after {formatting.format_seconds(outcome.ttft_seconds)}")
    if outcome.cached_tokens is not None and outcome.prompt_tokens is not None:
        parts.append(f"{outcome.cached_tokens:,} of {outcome.prompt_tokens:,} prompt tokens came from the cache")
    if outcome.output_tokens is not None:
        parts.append(formatting.pluralize(outcome.output_tokens, "token") + " written")
    if outcome.attempts > 1:
        parts.append(f"{outcome.attempts} engines were tried")
    return "what happened: " + (", ".join(parts) or "it ended")
