"""``fairlead chat``: a dialogue with a model through the gateway."""

import asyncio
import contextlib
import os
import sys
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from fairlead.errors import BadInput, FairleadError
from fairlead_cli.chat.conversation import Conversation
from fairlead_cli.chat.dialogue import Terminal, run_dialogue
from fairlead_cli.chat.gateway import ChatGateway, local_stack, open_gateway
from fairlead_cli.console import terminal_text
from fairlead_cli.errors import ClusterUnreachable, StackUnreachable
from fairlead_cli.exit_codes import OK, PROBLEM, UNREACHABLE, USAGE, report_failure
from fairlead_cli.explain.summary import summarize_decision
from fairlead_cli.management.client import ManagementClient
from fairlead_cli.management.endpoints import ManagementEndpoint
from fairlead_cli.target import ClusterOptions, ModelFlag, qualified_name

_CLUSTER = ClusterOptions()


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
        return report_failure("chat", error, UNREACHABLE)
    except FairleadError as error:
        return report_failure("chat", error, PROBLEM)


def _once(conversation: Conversation, text: str) -> int:
    if not text.strip():
        print("fairlead chat: there is no message to send: stdin or --message is empty", file=sys.stderr)
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
            return asyncio.run(_summary(endpoint, request_id))
    raise LookupError(request_id)


async def _summary(endpoint: ManagementEndpoint, request_id: str) -> list[str]:
    async with ManagementClient(endpoint.url(), endpoint.token) as management:
        return summarize_decision(await management.decision(request_id))


def _colours() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
