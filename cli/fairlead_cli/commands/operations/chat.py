"""``fairlead chat``: a dialogue with a model through the gateway."""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

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
    from fairlead_cli.chat.command import ChatOptions, run

    name = qualified_name(model, source.cluster.namespace)
    return run(ChatOptions(name, source.url, source.manage, message, system, max_tokens, source.cluster))
