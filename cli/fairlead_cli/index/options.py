"""Checked options of ``fairlead index``."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from cyclopts import Parameter

from fairlead.errors import BadInput
from fairlead.limits import Limits
from fairlead.manifests.loader import STDIN_PATH

_OPTION_ACTIONS: Final = {
    "tokens": ("match",),
    "adapter": ("match",),
    "salt": ("match",),
    "instance": ("watch", "verify"),
    "kind": ("watch",),
    "count": ("watch",),
}
"""Option → the actions that accept it."""
_TOKEN_DECODER: Final = msgspec.json.Decoder(list[int])


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """The options as given."""

    action: Annotated[str, Parameter(parse=False)] = "stats"
    model: Annotated[
        str | None,
        Parameter(help="Its name, or namespace/name. Default: of stats all, else the only one."),
    ] = None
    redis: Annotated[
        str | None,
        Parameter(
            help="The Redis that has the index. Default: FAIRLEAD_REDIS_URL, else that of the running `fairlead up`."
        ),
    ] = None
    tokens: Annotated[
        Path | None,
        Parameter(
            allow_leading_hyphen=True,
            help="Of match: a file with the prompt's token ids, a JSON list; - is standard input.",
        ),
    ] = None
    adapter: Annotated[str | None, Parameter(help="Of match: the LoRA adapter that the request names.")] = None
    salt: Annotated[str | None, Parameter(help="Of match: the request's cache_salt.")] = None
    instance: Annotated[
        str | None, Parameter(help="Of watch and verify: only instances whose id begins like this.")
    ] = None
    kind: Annotated[
        Literal["stored", "removed", "cleared", "marked"] | None,
        Parameter(help="Of watch: only batches that have such a change, and only these."),
    ] = None
    count: Annotated[int | None, Parameter(help="Of watch: end after so many batches.")] = None
    output: Annotated[
        Literal["table", "json"],
        Parameter(name=["--output", "-o"], help="How to say it; match is always JSON."),
    ] = "table"

    def validate(self) -> None:
        """Raises BadInput for an option of another action, and for a missing one."""
        for name, actions in _OPTION_ACTIONS.items():
            if getattr(self, name) is not None and self.action not in actions:
                text = f"--{name} belongs to {' and '.join(actions)}, not to {self.action}"
                raise BadInput(text, field=f"--{name}", hint="leave it out")
        if self.action == "match" and self.tokens is None:
            raise BadInput("match needs a prompt", field="--tokens", hint="--tokens FILE, a JSON list of token ids")
        if self.count is not None and self.count < 1:
            raise BadInput(f"--count {self.count} is less than one batch", field="--count", hint="leave it out: no end")


def read_token_ids(path: Path, limits: Limits) -> list[int]:
    """Returns the token ids of a prompt. Raises BadInput for anything else, OSError for an
    unreadable file.
    """
    if str(path) == STDIN_PATH:
        data = sys.stdin.buffer.read(limits.index_tokens_bytes + 1)
    else:
        with path.open("rb") as file:
            data = file.read(limits.index_tokens_bytes + 1)
    if len(data) > limits.index_tokens_bytes:
        text = f"{path} has more than {limits.index_tokens_bytes} bytes"
        raise BadInput(text, field="--tokens", hint="no prompt is as long")
    try:
        return _TOKEN_DECODER.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        text = f"{path} is no JSON list of token ids: {str(error)[:120]}"
        raise BadInput(text, field="--tokens", hint="write it as [1, 2, 3]") from None
