"""The names that requests get: plain, in order, never the same twice."""

import re

from fairlead_gateway.worker.request_ids import RequestIds


def test_they_count_up_in_plain_hexadecimal() -> None:
    ids = RequestIds()
    made = [ids.next() for _ in range(70_000)]
    begin = made[0].removesuffix("1")
    assert re.fullmatch(r"req-[0-9a-f]{8}-", begin)
    assert made == [f"{begin}{number:x}" for number in range(1, 70_001)]


def test_two_processes_make_others() -> None:
    assert RequestIds().next() != RequestIds().next()
