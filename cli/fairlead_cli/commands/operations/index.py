"""``fairlead index``: state, consistency and changes of the index in Redis.

The verbs read Redis as a gateway does and change nothing. Hashes of prompts need the installation's
secret, the same as gateways and the indexer have.
"""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from fairlead_cli.index.options import IndexOptions, IndexSource
from fairlead_cli.output import OutputFlag, OutputFormat
from fairlead_cli.target import ModelFlag

_Source = Annotated[IndexSource, Parameter(name="*")]
_HERE = IndexSource()
_InstanceFlag = Annotated[str | None, Parameter(help="Only instances whose id begins like this.")]


def index_stats(model: ModelFlag = None, *, source: _Source = _HERE, output: OutputFlag = "table") -> int:
    """Show who writes the index of each model, and what each instance has cached.

    Exits 0 when all is well, 1 when an index is unusable, incomplete or not written. Exits 2 on
    wrong usage or an unknown model, 3 when Redis cannot be reached.
    """
    return _run(IndexOptions("stats", model, source, output=output))


def index_match(
    *,
    model: ModelFlag = None,
    tokens: Annotated[
        Path,
        Parameter(
            allow_leading_hyphen=True, help="A file with the prompt's token ids, a JSON list; - is standard input."
        ),
    ],
    adapter: Annotated[str | None, Parameter(help="The LoRA adapter that the request names.")] = None,
    salt: Annotated[str | None, Parameter(help="The request's cache_salt.")] = None,
    source: _Source = _HERE,
    output: Annotated[OutputFormat, Parameter(name=["--output", "-o"], help="JSON, YAML or a table.")] = "json",
) -> int:
    """Show which instances have a prompt cached, how far, and in which tier.

    The hashes need the secret of the installation: FAIRLEAD_HASH_SECRET, else that of the stack or
    the cluster.

    Exits 0 with an answer, 1 when the index is unusable or not written. Exits 2 on wrong usage or
    an unknown model, 3 when Redis cannot be reached.
    """
    return _run(IndexOptions("match", model, source, tokens, adapter, salt, output=output))


def index_verify(
    model: ModelFlag = None,
    *,
    instance: _InstanceFlag = None,
    source: _Source = _HERE,
    output: OutputFlag = "table",
) -> int:
    """Compare the index with itself, and with what engines can replay.

    Engines whose addresses can be reached from here are queried for their published events.

    Exits 0 when nothing differs, 1 when something does or the index is unusable. Exits 2 on wrong
    usage or an unknown model, 3 when Redis cannot be reached.
    """
    return _run(IndexOptions("verify", model, source, instance=instance, output=output))


def index_watch(
    model: ModelFlag = None,
    *,
    instance: _InstanceFlag = None,
    kind: Annotated[
        Literal["stored", "removed", "cleared", "marked"] | None,
        Parameter(help="Only batches that have such a change, and only these."),
    ] = None,
    count: Annotated[int | None, Parameter(help="End after so many batches.")] = None,
    source: _Source = _HERE,
    output: OutputFlag = "table",
) -> int:
    """Print changes of the index as they happen, one batch a line, until Ctrl-C.

    Exits 0 after --count batches, 1 when the index is not written. Exits 2 on wrong usage or an
    unknown model, 3 when Redis cannot be reached.
    """
    return _run(IndexOptions("watch", model, source, instance=instance, kind=kind, count=count, output=output))


def _run(options: IndexOptions) -> int:
    from fairlead_cli.index.command import run

    return run(options)
