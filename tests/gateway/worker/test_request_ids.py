"""Ids of requests are unique, plain, and not to be guessed from earlier ones."""

import random
import re

from fairlead_gateway.http.listener import RequestIds


def test_clients_cannot_guess_the_id_of_another_request() -> None:
    drawn: list[bytes] = []

    def draw_bytes(count: int) -> bytes:
        drawn.append(random.Random(len(drawn)).randbytes(count))
        return drawn[-1]

    ids = RequestIds(draw_bytes)
    names = [ids.next() for _ in range(1_100)]
    assert all(re.fullmatch(r"req-[0-9a-f]{8}-[0-9a-f]{16}", name) for name in names)
    begin = f"req-{drawn[0].hex()}-"
    secret = b"".join(bytes.fromhex(name.removeprefix(begin)) for name in names)
    assert b"".join(drawn[1:]).startswith(secret)  # every id has 64 bits that were drawn for it alone


def test_ids_are_never_the_same_twice() -> None:
    ids = RequestIds()
    assert len({ids.next() for _ in range(70_000)}) == 70_000


def test_two_processes_make_others() -> None:
    assert RequestIds().next() != RequestIds().next()
