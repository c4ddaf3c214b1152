"""The dialogue of ``fairlead chat``: a line in, an answer streamed out, and a few words that begin with a slash."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fairlead.errors import FairleadError
from fairlead_cli.errors import NoStack
from fairlead_cli.local.answers import short
from fairlead_cli.local.conversation import Conversation
from fairlead_cli.local.words import time

HELP = "/why  why the last request went where it did\n/new  forget the conversation\n/quit or Ctrl-D  leave"


@dataclass(frozen=True, slots=True)
class Terminal:
    """``read`` raises EOFError at the end; ``write`` gets text as it comes, ``remark`` whole lines about it."""

    read: Callable[[], str]
    write: Callable[[str], None]
    remark: Callable[[str], None]


def talk(conversation: Conversation, terminal: Terminal, why: Callable[[str], list[str]]) -> int:
    """Until ``/quit`` or the end of input; the exit code."""
    while True:
        try:
            text = terminal.read().strip()
        except (EOFError, KeyboardInterrupt):
            terminal.remark("")
            return 0
        if text in ("/quit", "/exit", "/q"):
            return 0
        if text == "/why":
            _explain(conversation, terminal, why)
        elif text == "/new":
            conversation.forget()
            terminal.remark("forgotten")
        elif text.startswith("/"):
            terminal.remark(HELP)
        elif text:
            _answer(conversation, terminal, text)


def _answer(conversation: Conversation, terminal: Terminal, text: str) -> None:
    answer: Iterator[str] = conversation.ask(text)
    said = False
    try:
        for piece in answer:
            terminal.write(piece)
            said = True
        terminal.write("\n")
    except KeyboardInterrupt:
        answer.close()  # type: ignore[attr-defined]  # a generator: closing it lets go of the connection, and the engine stops
        terminal.write("\n")
        terminal.remark("stopped")
        return
    except FairleadError as error:
        terminal.write("\n" if said else "")
        terminal.remark(str(error))
        return
    last = conversation.last
    if last.instance:
        terminal.remark(f"{short(last.instance)} · {last.reason or '?'} · first token {time(last.ttft_seconds)}")


def _explain(conversation: Conversation, terminal: Terminal, why: Callable[[str], list[str]]) -> None:
    request_id = conversation.last.request_id
    if request_id is None:
        terminal.remark("the last request reached no gateway" if conversation.last.asked else "nothing was asked yet")
        return
    try:
        terminal.remark("\n".join(why(request_id)))
    except LookupError:
        terminal.remark(f"the gateway has forgotten request {request_id}")
    except NoStack as error:
        terminal.remark(str(error))
