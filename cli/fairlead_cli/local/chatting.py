"""``fairlead chat``, from its arguments to its exit code."""

import asyncio
import contextlib
import os
import sys
from dataclasses import dataclass

from fairlead.errors import BadInput, FairleadError
from fairlead.settings import CliSettings, read
from fairlead_cli.errors import NoStack
from fairlead_cli.local.conversation import Conversation
from fairlead_cli.local.explain import explanation
from fairlead_cli.local.management import Management
from fairlead_cli.local.ports import service_url
from fairlead_cli.local.repl import Terminal, talk
from fairlead_cli.local.rundir import Stack, newest_stack, running_stacks

OK, PROBLEM, USAGE, UNREACHABLE = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Chat:
    """The arguments."""

    model: str | None
    url: str | None
    manage: str | None
    message: str | None
    system: str | None
    max_tokens: int | None


def run(wanted: Chat) -> int:
    """One answer or a dialogue; the exit code."""
    try:
        url = service_url(wanted.url, flag="--url") if wanted.url else newest_stack().url
        settings = read(CliSettings, os.environ)
        with Conversation(
            url, wanted.model, key=settings.api_key, system=wanted.system, max_tokens=wanted.max_tokens
        ) as conversation:
            if wanted.message is not None or not sys.stdin.isatty():
                return _once(conversation, sys.stdin.read() if wanted.message is None else wanted.message)
            return _dialogue(conversation, wanted.manage, settings.manage_token)
    except BadInput:
        raise  # wrong usage
    except NoStack as error:
        print(f"fairlead chat: {error}", file=sys.stderr)
        return UNREACHABLE
    except FairleadError as error:
        print(f"fairlead chat: {error}", file=sys.stderr)
        return PROBLEM


def _once(conversation: Conversation, text: str) -> int:
    if not text.strip():
        print("fairlead chat: there is nothing to ask (stdin or --message is empty)", file=sys.stderr)
        return USAGE
    said = False
    try:
        for piece in conversation.ask(text):
            print(piece, end="", flush=True)
            said = True
    except KeyboardInterrupt:
        return 130
    finally:
        if said:
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
    return talk(conversation, terminal, lambda request_id: _why(conversation.base, manage, token, request_id))


def _why(base: str, manage: str | None, token: str | None, request_id: str) -> list[str]:
    """The decision in words. Raises LookupError when it is forgotten, NoStack when nobody can be asked."""
    stack = _local(base)
    if not manage and stack is None:
        raise NoStack("the management address of this gateway is not known", hint="give it with --manage")
    address = service_url(manage, flag="--manage") if manage else stack.manage if stack else ""

    async def ask() -> list[str]:
        async with Management(address, token) as management:
            return explanation(await management.decision(request_id))

    return asyncio.run(ask())


def _local(base: str) -> Stack | None:
    """The stack of this machine and user that the gateway at ``base`` belongs to."""
    return next((stack for stack in running_stacks() if stack.url == base), None)


def _colours() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
