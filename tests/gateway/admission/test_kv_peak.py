"""The peak of an engine's KV memory, against stepping through it."""

from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.admission.kv_capacity import SequenceForecast, peak_tokens

SEQUENCE = st.builds(SequenceForecast, st.integers(1, 500), st.integers(1, 60))
SEQUENCES = st.lists(SEQUENCE, max_size=12)


def stepped_peak(sequences: list[SequenceForecast]) -> float:
    """Lets every sequence grow by one token a step until its last token is out."""
    peak = 0.0
    for step in range(1, 61):
        present = [sequence for sequence in sequences if sequence.remaining_tokens >= step]
        peak = max(peak, sum(sequence.now_tokens + step for sequence in present))
    return peak


@given(SEQUENCES)
def test_the_peak_is_the_most_that_is_ever_cached(sequences: list[SequenceForecast]) -> None:
    assert peak_tokens(sequences) == stepped_peak(sequences)


@given(SEQUENCES, SEQUENCE)
def test_one_more_sequence_never_lowers_the_peak(sequences: list[SequenceForecast], more: SequenceForecast) -> None:
    assert peak_tokens([*sequences, more]) >= peak_tokens(sequences)


def test_the_peak_of_known_sequences() -> None:
    assert peak_tokens([SequenceForecast(400, 100), SequenceForecast(300, 50)]) == 800
    assert peak_tokens([]) == 0
