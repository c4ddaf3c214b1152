"""A fixed number of engines follows the traffic: what is held counts, answers are guessed before they end, and nothing swings."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fairlead.fleet import Objectives
from fairlead.profile import EngineProfile
from fairlead_autoscaler.roles import Balancer, Seen, Transfer

L = EngineProfile(
    "L",
    9e-5,
    step_seconds=12e-3,
    sequence_seconds=4e-5,
    resident_token_seconds=8.7e-8,
    kv_tokens=400_000,
    step_tokens=1024,
)
KEPT = Objectives(target=0.99, ttft_seconds=2.0, itl_seconds=0.1)

LONG = Seen(0.0, 60.0, 60.0 * 8_000, 6_000.0, 60.0, 14, 2, age_tokens=50.0)
CHATTY = Seen(0.0, 180.0, 180.0 * 1_000, 180.0 * 800, 180.0, 5, 11, age_tokens=400.0)


def balancer() -> Balancer:
    return Balancer(L, L, KEPT, transfer=Transfer(0.02, 131e3 / 12e9))


def run(core: Balancer, seen: Seen, looks: int, begin: float = 0.0) -> int:
    """The number that prefill after so many equal looks."""
    prefill, total = seen.prefill, seen.prefill + seen.decode
    for look in range(looks):
        now = begin + 5.0 * (look + 1)
        prefill = core.step(replace(seen, now=now, prefill=prefill, decode=total - prefill)).prefill
    return prefill


def test_each_traffic_has_its_division_and_keeps_it() -> None:
    assert run(balancer(), replace(LONG, prefill=8, decode=8), 12) == 14
    assert run(balancer(), replace(CHATTY, prefill=8, decode=8), 12) in (5, 6)


def test_prompts_that_are_held_keep_their_engines() -> None:
    core = balancer()
    run(core, LONG, 12)
    turned = replace(CHATTY, now=65.0, prefill=14, decode=2, generated_tokens=30_000.0, finished=20.0, age_tokens=100.0)
    waiting = replace(turned, held=400.0, held_prompt_tokens=400 * 8_000.0)
    other = balancer()
    run(other, LONG, 12)
    assert other.step(waiting).prefill > core.step(turned).prefill


def test_answers_of_a_new_kind_count_before_one_has_ended() -> None:
    core = balancer()
    run(core, LONG, 12)
    young = replace(CHATTY, now=65.0, prefill=14, decode=2, finished=0.0, generated_tokens=20_000.0, age_tokens=40.0)
    first = core.step(young)
    older = core.step(replace(young, now=70.0, prefill=first.prefill, decode=16 - first.prefill, age_tokens=300.0))
    assert first.prefill < 14
    assert older.prefill < first.prefill
    assert older.prefill >= 5, "generated ÷ ended, which is endless here, is not believed"


def test_silence_and_a_mere_ripple_move_nothing() -> None:
    core = balancer()
    settled = run(core, CHATTY, 12)
    for number, factor in enumerate((0.9, 1.1, 0.95, 1.05, 1.0) * 3):
        seen = replace(CHATTY, prompt_tokens=CHATTY.prompt_tokens * factor, age_tokens=400.0 / factor)
        settled_again = core.step(replace(seen, now=65.0 + 5 * number, prefill=settled, decode=16 - settled)).prefill
        assert settled_again == settled
    quiet = Seen(1_000.0, 0.0, 0.0, 0.0, 0.0, settled, 16 - settled)
    assert core.step(quiet).prefill == settled


amounts = st.floats(0, 1e6)


@given(st.lists(st.tuples(amounts, amounts, amounts, amounts, amounts, st.one_of(st.none(), amounts)), max_size=20))
def test_whatever_is_counted_both_roles_keep_an_engine(looks: list[tuple[float, ...]]) -> None:
    core, prefill = balancer(), 8
    for number, (arrivals, prompts, generated, finished, held, age) in enumerate(looks):
        seen = Seen(5.0 * number, arrivals, prompts, generated, finished, prefill, 16 - prefill, held, held * 100, age)
        prefill = core.step(seen).prefill
        assert 1 <= prefill <= 15
