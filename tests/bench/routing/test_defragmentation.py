"""The benchmark of defragmentation: its schedule, and the rows of its arms."""

import pytest

from fairlead_bench.routing.defragmentation import (
    FIRST_LONG_SECONDS,
    LONG_OUTPUT,
    LONG_TOKENS,
    Arm,
    Sent,
    rows,
    schedule,
)


def test_long_prompts_come_every_40_seconds_among_the_same_chats() -> None:
    short, longer = schedule(3, FIRST_LONG_SECONDS), schedule(3, FIRST_LONG_SECONDS + 90.0)
    assert short == longer[: len(short)]
    longs = [at for at, prompt, output in longer if (prompt, output) == (LONG_TOKENS, LONG_OUTPUT)]
    assert longs == [FIRST_LONG_SECONDS, FIRST_LONG_SECONDS + 40.0]
    assert longer == sorted(longer)


def test_rows_leave_out_first_chats_and_count_requests_without_a_token() -> None:
    chats = [Sent(False, 50.0, 50.0, 1), *[Sent(False, 1.0, 3.0, 5)] * 18, Sent(False)]
    arms = [Arm([*chats, Sent(True, first, first, 1)], 2.0, moved) for first, moved in ((9.0, 0.0), (4.0, 3.0))]
    found = {row.metric: row for row in rows([(arms[0], arms[1])])}
    mean = "long prompts: mean TTFT ÷ that of an empty engine: "
    assert found[mean + "without"].value == 9.0
    assert found[mean + "defragment"].value == 4.0
    assert found[mean + "defragment"].ratio == pytest.approx(4.0 / found[mean + "defragment"].versus_value)
    assert found["chats: p99 TTFT: defragment"].value == 1.0
    assert found["chats: p99 TPOT: defragment"].value == 0.5
    assert found["requests without a first token: defragment"].value == 1
    assert (found["moves: without"].value, found["moves: defragment"].value) == (0.0, 3.0)
