"""Checked options of ``fairlead index``."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cyclopts import Parameter

from fairlead.errors import BadInput
from fairlead.manifests.files import STDIN_PATH
from fairlead_cli.output import OutputFormat
from fairlead_cli.target import ClusterOptions, qualified_name

INDEX_TOKENS_BYTES: Final = 64 * 1024 * 1024
"""Limit: a file of token ids that `fairlead index match` reads."""

_CLUSTER: Final = ClusterOptions()
_TOKEN_DECODER: Final = msgspec.json.Decoder(list[int])


@dataclass(frozen=True, slots=True)
class IndexSource:
    """Flags that select the Redis with the index: by its URL, or by its cluster."""

    redis: Annotated[
        str | None,
        Parameter(help="The Redis. Default: FAIRLEAD_REDIS_URL, else that of `fairlead up`, else of the cluster."),
    ] = None
    cluster: Annotated[ClusterOptions, Parameter(name="*")] = _CLUSTER


_ANY: Final = IndexSource()


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """The options of ``fairlead index`` as given on the command line."""

    action: str
    model: str | None = None
    source: IndexSource = _ANY
    tokens: Path | None = None
    adapter: str | None = None
    salt: str | None = None
    instance: str | None = None
    kind: str | None = None
    count: int | None = None
    output: OutputFormat = "table"

    @property
    def qualified_model(self) -> str | None:
        """The model with the namespace of ``-n``, if it has none."""
        return qualified_name(self.model, self.source.cluster.namespace)

    def validate(self) -> None:
        """Raises BadInput for wrong usage."""
        if self.count is not None and self.count < 1:
            raise BadInput(
                f"--count {self.count} is less than one batch", field="--count", hint="leave --count out for no end"
            )


def read_token_ids(path: Path) -> list[int]:
    """Returns the token ids of a prompt from a JSON list in a file. ``-`` is standard input.

    Raises BadInput for other content, OSError for an unreadable file.
    """
    if str(path) == STDIN_PATH:
        data = sys.stdin.buffer.read(INDEX_TOKENS_BYTES + 1)
    else:
        with path.open("rb") as file:
            data = file.read(INDEX_TOKENS_BYTES + 1)
    if len(data) > INDEX_TOKENS_BYTES:
        text = f"{path} has more than {INDEX_TOKENS_BYTES} bytes"
        raise BadInput(text, field="--tokens", hint="no prompt is that long")
    try:
        return _TOKEN_DECODER.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        text = f"{path} is not a JSON list of token ids: {str(error)[:120]}"
        raise BadInput(text, field="--tokens", hint="write it as [1, 2, 3]") from None
