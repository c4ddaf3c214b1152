"""The worst moment still to come, against stepping through it."""

from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.admission.kv_peak import SequenceForecast, fits, peak_tokens

HELD = st.lists(st.builds(SequenceForecast, st.integers(1, 500), st.integers(1, 60)), max_size=12)


def stepped(held: list[SequenceForecast]) -> float:
    """Each grows by one a step and leaves when its last token is out."""
    most = 0.0
    for step in range(1, 61):
        most = max(most, sum(one.now_tokens + step for one in held if one.remaining_tokens >= step))
    return most


@given(HELD)
def test_it_is_the_most_that_is_ever_held(held: list[SequenceForecast]) -> None:
    assert peak_tokens(held) == stepped(held)


@given(HELD, st.builds(SequenceForecast, st.integers(1, 500), st.integers(1, 60)))
def test_one_more_never_lowers_it(held: list[SequenceForecast], more: SequenceForecast) -> None:
    assert peak_tokens([*held, more]) >= peak_tokens(held)


def test_a_request_is_let_in_while_all_can_run_to_their_ends() -> None:
    running = [SequenceForecast(400, 100), SequenceForecast(300, 50)]
    assert peak_tokens(running) == 800
    assert fits([*running, SequenceForecast(150, 10)], 1_000)
    assert not fits([*running, SequenceForecast(150, 90)], 1_000)
    assert peak_tokens([]) == 0
