"""The message to workers about the gateways that own idempotency keys together."""

import msgspec


class GatewayList(msgspec.Struct, tag=True):
    """Supervisor → worker: the gateways among which each key has an owner, as `ADDRESS:PORT`.

    - own: of this gateway; empty if it is not known.
    - present: all that serve, this one among them.
    - leaving: those that left the list within seconds, which may still answer.
    - lost: those that left earlier, but within the time for which answers are kept.
    """

    own: str = ""
    present: list[str] = []
    leaving: list[str] = []
    lost: list[str] = []
