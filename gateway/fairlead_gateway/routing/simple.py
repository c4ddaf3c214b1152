"""The plain presets: round-robin, least-request and session. Baselines, and what some traffic needs.

least-request ties are broken by a hash of the request's id, not by order: with order, an idle fleet sends everything
to its first member.
"""

from collections.abc import Mapping, Sequence

import xxhash

from fairlead.decision import Decision, Input, Rejected


def round_robin(ids: Sequence[str], turn: int) -> Decision:
    """The ``turn``-th instance, counting around."""
    chosen = ids[turn % len(ids)]
    return Decision(chosen, "round-robin", f"turn {turn % len(ids) + 1} of {len(ids)}")


def least_request(inflight: Mapping[str, int], request_id: str) -> Decision:
    """The instance with the fewest of this gateway's requests in flight."""
    chosen = min(inflight, key=lambda item: (inflight[item], _shuffle(request_id, item)))
    least = inflight[chosen]
    rejected = tuple(
        Rejected(item, f"{count} in flight against {least}") for item, count in inflight.items() if item != chosen
    )
    inputs = {f"{item}/inflight": Input(float(count)) for item, count in inflight.items()}
    return Decision(chosen, "least-request", f"fewest in flight: {least}", rejected, inputs)


def session(homes: Sequence[str], named: bool) -> Decision:
    """The first home of the session (or, without a session id, of the prompt's key), whatever its load."""
    what = "the session's" if named else "no session id was sent; the prompt's"
    return Decision(homes[0], "session", f"{what} home", tuple(Rejected(item, "second home") for item in homes[1:]))


def _shuffle(request_id: str, instance: str) -> int:
    return xxhash.xxh3_64_intdigest(f"{request_id}|{instance}".encode())
