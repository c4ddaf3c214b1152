"""``fairlead index``: what the index in Redis says, whether it is right, and how it changes."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def index(
    action: Annotated[
        Literal["stats", "match", "verify", "watch"],
        Parameter(
            help="stats: who writes it, and what each instance holds; match: who holds a prompt, how far, in which tier; verify: "
            "compare it with itself and with what engines can replay; watch: what changes, as it changes."
        ),
    ] = "stats",
    /,
    *,
    model: Annotated[
        str | None,
        Parameter(help="Its name, or namespace/name. Default: of stats all, else the only one."),
    ] = None,
    redis: Annotated[
        str | None,
        Parameter(
            help="The Redis that has the index. Default: FAIRLEAD_REDIS_URL, else that of the running `fairlead up`."
        ),
    ] = None,
    tokens: Annotated[
        Path | None,
        Parameter(
            allow_leading_hyphen=True,
            help="Of match: a file with the prompt's token ids, a JSON list; - is standard input.",
        ),
    ] = None,
    adapter: Annotated[str | None, Parameter(help="Of match: the LoRA adapter that the request names.")] = None,
    salt: Annotated[str | None, Parameter(help="Of match: the request's cache_salt.")] = None,
    instance: Annotated[
        str | None, Parameter(help="Of watch and verify: only instances whose id begins like this.")
    ] = None,
    kind: Annotated[
        Literal["stored", "removed", "cleared", "marked"] | None,
        Parameter(help="Of watch: only batches that have such a change, and only these."),
    ] = None,
    count: Annotated[int | None, Parameter(help="Of watch: end after so many batches.")] = None,
    output: Annotated[
        Literal["table", "json"], Parameter(name=["--output", "-o"], help="How to say it; match is always JSON.")
    ] = "table",
) -> int:
    """Look into the index: who holds which prefix, whether that is right, and what changes.

    It reads Redis as a gateway does and changes nothing. Hashes of prompts need the installation's secret (FAIRLEAD_HASH_SECRET), the
    same as gateways and the indexer have. `verify` asks engines for what they have published, where their addresses can be reached.

    Exits 0 when all is well; 1 when the index cannot be used, nobody writes it, or verify found a difference; 2 on wrong usage or
    an unknown model; 3 when Redis cannot be reached.
    """
    from fairlead_cli.index.command import run
    from fairlead_cli.index.options import IndexOptions

    return run(IndexOptions(action, model, redis, tokens, adapter, salt, instance, kind, count, output))
