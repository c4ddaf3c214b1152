"""``fairlead chat``: a dialogue with a model through the gateway."""

from typing import Annotated

from cyclopts import Parameter


def chat(
    model: Annotated[str | None, Parameter(help="Its name; may be left out where there is only one.")] = None,
    /,
    *,
    url: Annotated[str | None, Parameter(help="The gateway. Default: that of the running `fairlead up`.")] = None,
    manage: Annotated[str | None, Parameter(help="Its management address, for /why.")] = None,
    message: Annotated[
        str | None, Parameter(name=["--message", "-m"], help="Ask this, print the answer and leave.")
    ] = None,
    system: Annotated[str | None, Parameter(help="A system message.")] = None,
    max_tokens: Annotated[int | None, Parameter(help="Longest answer, in tokens.")] = None,
) -> int:
    """Chat with a model. Piped text, or -m, is asked once; otherwise a dialogue: /why, /new, /quit.

    Exits 0 when answered, 1 on an error answer, 3 when no gateway can be reached.
    """
    from fairlead_cli.chat.command import ChatOptions, run

    return run(ChatOptions(model, url, manage, message, system, max_tokens))
