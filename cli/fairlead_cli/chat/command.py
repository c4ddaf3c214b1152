"""``fairlead chat``: from the options to the exit code."""

import asyncio
import contextlib
import os
import sys
from dataclasses import dataclass

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
from fairlead_cli.target import ClusterOptions

_CLUSTER = ClusterOptions()


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """Options of ``fairlead chat``."""

    model: str | None
    url: str | None
    manage: str | None
    message: str | None
    system: str | None
    max_tokens: int | None
    cluster: ClusterOptions = _CLUSTER


def run(options: ChatOptions) -> int:
    """Prints one answer or runs a dialogue; returns the exit code."""
    try:
        with (
            open_gateway(options.url, options.manage, options.cluster) as gateway,
            Conversation(
                gateway.url,
                options.model and gateway.qualify_model(options.model),
                key=gateway.key,
                system=options.system,
                max_tokens=options.max_tokens,
                verify=not gateway.is_forwarded,
            ) as conversation,
        ):
            if options.message is not None or not sys.stdin.isatty():
                return _once(conversation, sys.stdin.read() if options.message is None else options.message)
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
