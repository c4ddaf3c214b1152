"""The dialogue of ``fairlead chat``: reads a line, streams the answer, and handles commands that
begin with a slash.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fairlead.errors import FairleadError
from fairlead_cli.chat.conversation import Conversation
from fairlead_cli.errors import StackUnreachable
from fairlead_cli.formatting import format_seconds
from fairlead_cli.management.api_types import short_instance_name

DIALOGUE_HELP = "/why  why the last request went where it did\n/new  forget the conversation\n/quit or Ctrl-D  leave"


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
