"""``fairlead index``: state, consistency and changes of the index in Redis."""

from dataclasses import replace
from typing import Annotated, Literal

from cyclopts import Parameter

from fairlead_cli.index.options import IndexOptions

_DEFAULTS = IndexOptions()


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
    options: Annotated[IndexOptions, Parameter(name="*")] = _DEFAULTS,
) -> int:
    """Look into the index: which instances have which prefix cached, whether that is right, and
    what changes.

    It reads Redis as a gateway does and changes nothing. Hashes of prompts need the installation's
    secret (FAIRLEAD_HASH_SECRET), the same as gateways and the indexer have. `verify` asks engines
    for their published events, when their addresses can be reached.

    Exits 0 when all is well, 2 on wrong usage or an unknown model, 3 when Redis cannot be reached.
    Exits 1 when the index is unusable, not written, or differs in verify.
    """
    from fairlead_cli.index.command import run

    return run(replace(options, action=action))
