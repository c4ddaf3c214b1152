"""Observed spans: their start, end and work."""

import math

from fairlead_gateway.profiles.observations import (
    MAX_RUN_PROMPTS,
    ComputedWork,
    EngineObserver,
    Observation,
)


def ended(watch: EngineObserver, request: str, now: float, cached: float = 0.0) -> list[Observation]:
    return [span for span in watch.on_finish(request, now, cached_tokens=cached, output_tokens=2) if span.steps is None]


def test_a_prompt_alone_is_a_run_from_its_dispatch_to_its_first_token() -> None:
    watch = EngineObserver(8_192)
    watch.on_dispatch("a", 1.0, 1_000, 0)
    watch.on_first_token("a", 1.5)
    (span,) = ended(watch, "a", 2.0)
    assert span == Observation(
        0.5, ComputedWork(1_000.0, 500_000.0, 0.0, 1.0), 0.0, 0.0, peak_tokens=1_000.0, peak_sequences=1
    )


def test_prompts_that_follow_one_another_are_one_run() -> None:
    watch = EngineObserver(1_010)  # a step's budget, less the sequences that decode
    for name, at in (("a", 0.0), ("b", 0.1), ("c", 0.2)):
        watch.on_dispatch(name, at, 1_000, 0)
    for name, at in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
        watch.on_first_token(name, at)
    assert ended(watch, "a", 4.0) == []
    assert ended(watch, "b", 4.0) == []
    (span,) = ended(watch, "c", 4.0)
    assert span.seconds == 3.0
    assert span.work.computed == 3_000.0
    assert span.work.steps == 3.0


def test_a_prompt_that_came_after_a_pause_begins_another_run() -> None:
    watch = EngineObserver(8_192)
    watch.on_dispatch("a", 0.0, 1_000, 0)
    watch.on_first_token("a", 1.0)
    watch.on_dispatch("b", 5.0, 1_000, 0)
    watch.on_first_token("b", 5.5)
    (first,) = ended(watch, "a", 6.0)
    (second,) = ended(watch, "b", 6.0)
    assert (first.seconds, second.seconds) == (1.0, 0.5)
    assert second.began_mid_step  # a decoded when b came: a step of it had to end
    assert not first.began_mid_step
    assert second.sequences == 1.0
    assert second.resident >= 1_000.0


def test_first_tokens_of_one_step_are_one_observation() -> None:
    watch = EngineObserver(8_192)
    for name in "ab":
        watch.on_dispatch(name, 0.0, 300, 0)
    watch.on_first_token("a", 0.1)
    watch.on_first_token("b", 0.1001)
    ended(watch, "a", 1.0)
    (span,) = ended(watch, "b", 1.0)
    assert span.work.computed == 600.0
    assert span.work.steps == 1.0
    assert math.isclose(span.seconds, 0.1001)


def test_what_the_engine_says_it_had_replaces_what_was_expected() -> None:
    watch = EngineObserver(8_192)
    watch.on_dispatch("a", 0.0, 1_000, 0)
    watch.on_first_token("a", 0.1)
    (observation,) = ended(watch, "a", 1.0, cached=768)
    assert (observation.work.computed, observation.work.cached, observation.is_cache_assumed) == (232.0, 768.0, False)
    watch.on_dispatch("b", 2.0, 1_000, 512)
    watch.on_first_token("b", 2.1)
    (silent,) = watch.on_finish("b", 3.0)
    assert (silent.work.computed, silent.is_cache_assumed) == (488.0, True)


def test_an_answer_is_a_span_with_the_prompts_that_were_computed_beside_it() -> None:
    watch = EngineObserver(8_192)
    watch.on_dispatch("long", 0.0, 500, 0)
    watch.on_first_token("long", 0.1)
    watch.on_dispatch("other", 1.0, 2_000, 0)
    watch.on_first_token("other", 1.2)
    watch.on_finish("other", 2.0, cached_tokens=1_024, output_tokens=5)
    spans = watch.on_finish("long", 4.1, cached_tokens=0, output_tokens=101)
    (answer,) = [span for span in spans if span.steps is not None]
    assert answer.steps == 100
    assert math.isclose(answer.seconds, 4.0)
    assert answer.work.computed == 976.0  # corrected when the other request ended
    assert answer.work.cached == 1_024.0
    assert math.isclose(answer.sequences, (4.0 + 0.8) / 4.0)


def test_a_long_run_is_cut() -> None:
    watch = EngineObserver(1_000)
    names = [f"r{number}" for number in range(MAX_RUN_PROMPTS + 2)]
    for name in names:
        watch.on_dispatch(name, 0.0, 1_000, 0)
    for number, name in enumerate(names):
        watch.on_first_token(name, 1.0 + number)
    runs = [span for name in names for span in ended(watch, name, 100.0)]
    assert [span.work.computed for span in runs] == [1_000.0 * MAX_RUN_PROMPTS, 2_000.0]


def test_requests_that_fail_or_are_sent_again_leave_nothing_behind() -> None:
    watch = EngineObserver(8_192)
    watch.on_dispatch("a", 0.0, 1_000, 0)
    watch.on_abandoned("a", 0.5)
    watch.on_dispatch("b", 1.0, 1_000, 0)
    watch.on_dispatch("b", 2.0, 1_000, 0)  # sent again
    watch.on_first_token("b", 2.5)
    watch.on_first_token("b", 2.6)
    (span,) = ended(watch, "b", 3.0)
    assert span.seconds == 0.5
    assert span.peak_sequences == 1
    assert watch.on_finish("nobody", 4.0) == []


def test_unstreamed_response_blurs_the_run_beside_it_and_decodes_from_then_on() -> None:
    watch = EngineObserver(8_192)
    watch.on_dispatch("whole", 0.0, 2_000, 0)
    watch.on_dispatch("streamed", 0.1, 1_000, 0)
    watch.on_first_token("streamed", 0.5)
    assert ended(watch, "streamed", 1.0) == []
    watch.on_dispatch("next", 1.5, 1_000, 0)
    watch.on_first_token("next", 1.7)
    (span,) = ended(watch, "next", 2.0)
    assert span.sequences == 1.0
    assert span.resident >= 2_000.0
    assert watch.on_finish("whole", 3.0, cached_tokens=0, output_tokens=100) == []


def test_what_another_gateways_prompt_was_beside_is_not_measured() -> None:
    watch = EngineObserver(8_192)
    watch.on_dispatch("a", 0.0, 1_000, 0)
    watch.on_first_token("a", 0.1)
    watch.on_peer_dispatch(1.0, 0.5)
    watch.on_dispatch("b", 1.2, 1_000, 0)
    watch.on_first_token("b", 1.8)
    assert ended(watch, "b", 2.0) == []
    assert [span.steps for span in watch.on_finish("a", 4.1, cached_tokens=0, output_tokens=101)] == [None]
    watch.on_dispatch("c", 5.0, 1_000, 0)
    watch.on_first_token("c", 5.2)
    assert [span.steps for span in watch.on_finish("c", 6.0, cached_tokens=0, output_tokens=11)] == [10, None]


def test_a_response_that_is_not_measured_takes_its_run_with_it_and_leaves_later_ones() -> None:
    watch = EngineObserver(8_192)
    watch.on_dispatch("several", 0.0, 1_000, 0)
    watch.on_dispatch("beside", 0.1, 1_000, 0)
    watch.on_first_token("several", 1.0)
    watch.on_first_token("beside", 2.0)
    watch.on_unmeasured("several", 3.0)
    assert ended(watch, "beside", 4.0) == []
    watch.on_dispatch("later", 5.0, 1_000, 0)
    watch.on_first_token("later", 5.5)
    (span,) = ended(watch, "later", 6.0)
    assert (span.seconds, span.sequences) == (0.5, 0.0)


def test_a_prompt_that_came_before_the_one_ahead_ended_names_that_step() -> None:
    watch = EngineObserver(2_000)
    watch.on_dispatch("decoding", 0.0, 100, 0)
    watch.on_first_token("decoding", 0.1)
    watch.on_dispatch("ahead", 1.0, 5_000, 0)
    watch.on_dispatch("behind", 1.4, 600, 0)
    watch.on_first_token("ahead", 1.5)
    watch.on_first_token("behind", 1.6)
    assert ended(watch, "ahead", 2.0, cached=500) == []
    (span,) = ended(watch, "behind", 2.0)
    (step,) = span.preceding
    assert math.isclose(step.gap_seconds, 0.1)
    assert step[1:] == (500.0, 500.0 * (5_000.0 - 250.0), 1)  # the rest of 4,500 tokens, of which a step takes 2,000
    assert span.work.steps == 4.0


def test_a_prompt_that_would_have_fitted_into_the_step_before_takes_one_of_its_own() -> None:
    watch = EngineObserver(2_000)
    for name, at in (("first", 0.0), ("second", 0.1)):
        watch.on_dispatch(name, at, 500, 0)
    watch.on_first_token("first", 0.2)
    watch.on_first_token("second", 0.3)
    ended(watch, "first", 1.0)
    (span,) = ended(watch, "second", 1.0)
    assert span.work.steps == 2.0
