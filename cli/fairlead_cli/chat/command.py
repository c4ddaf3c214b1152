"""``fairlead chat``: from the options to the exit code."""

import asyncio
import contextlib
import os
import sys
from dataclasses import dataclass

from fairlead.errors import BadInput, FairleadError
from fairlead.settings import CliSettings, read_settings
from fairlead_cli.addresses import service_url
from fairlead_cli.chat.conversation import Conversation
from fairlead_cli.chat.dialogue import Terminal, run_dialogue
from fairlead_cli.errors import StackUnreachable
from fairlead_cli.exit_codes import OK, PROBLEM, UNREACHABLE, USAGE, report_failure
from fairlead_cli.explain.summary import summarize_decision
from fairlead_cli.local.run_directory import RunningStack, newest_stack, running_stacks
from fairlead_cli.management.client import ManagementClient


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """Options of ``fairlead chat``."""

    model: str | None
    url: str | None
    manage: str | None
    message: str | None
    system: str | None
    max_tokens: int | None


def run(options: ChatOptions) -> int:
    """Prints one answer or runs a dialogue; returns the exit code."""
    try:
        url = service_url(options.url, flag="--url") if options.url else newest_stack().url
        settings = read_settings(CliSettings, os.environ)
        with Conversation(
            url, options.model, key=settings.api_key, system=options.system, max_tokens=options.max_tokens
        ) as conversation:
            if options.message is not None or not sys.stdin.isatty():
                return _once(conversation, sys.stdin.read() if options.message is None else options.message)
            return _dialogue(conversation, options.manage, settings.manage_token)
    except BadInput:
        raise  # wrong usage
    except StackUnreachable as error:
        return report_failure("chat", error, UNREACHABLE)
    except FairleadError as error:
        return report_failure("chat", error, PROBLEM)


def _once(conversation: Conversation, text: str) -> int:
    if not text.strip():
        print("fairlead chat: there is nothing to ask (stdin or --message is empty)", file=sys.stderr)
        return USAGE
    has_output = False
    try:
        for piece in conversation.send(text):
            print(piece, end="", flush=True)
            has_output = True
    except KeyboardInterrupt:
        return 130
    finally:
        if has_output:
            with contextlib.suppress(OSError):
                print(flush=True)
    return OK


def _dialogue(conversation: Conversation, manage: str | None, token: str | None) -> int:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history for input())
    dim, plain = ("\033[2m", "\033[0m") if _colours() else ("", "")

    def write(text: str) -> None:
        print(text, end="", flush=True)

    def remark(text: str) -> None:
        print(f"{dim}{text}{plain}", flush=True)

    stack = _local(conversation.base)
    simulated = " · simulated: the words are made up" if stack and stack.simulated else ""
    remark(f"{conversation.model} at {conversation.base}{simulated} · /why, /new, /quit")
    terminal = Terminal(lambda: input("> "), write, remark)
    return run_dialogue(conversation, terminal, lambda request_id: _why(conversation.base, manage, token, request_id))


def _why(base: str, manage: str | None, token: str | None, request_id: str) -> list[str]:
    """Returns the decision as text.

    Raises LookupError when the gateway no longer has it, StackUnreachable when no management
    address is known.
    """
    stack = _local(base)
    if not manage and stack is None:
        raise StackUnreachable("the management address of this gateway is not known", hint="give it with --manage")
    address = service_url(manage, flag="--manage") if manage else stack.manage if stack else ""

    async def ask() -> list[str]:
        async with ManagementClient(address, token) as management:
            return summarize_decision(await management.decision(request_id))

    return asyncio.run(ask())


def _local(base: str) -> RunningStack | None:
    """Returns the running stack of this user whose gateway is at ``base``."""
    return next((stack for stack in running_stacks() if stack.url == base), None)


def _colours() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
