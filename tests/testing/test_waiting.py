"""The text of a wait that gives up."""

from functools import partial

import pytest

from fairlead_testing.waiting import wait_until


async def never() -> bool:
    return False


async def test_lambda_is_shown_with_its_source() -> None:
    ready: list[str] = []
    with pytest.raises(AssertionError, match=r"waited 0\.01 s in vain: await wait_until\(lambda: len\(ready\) == 2, "):
        await wait_until(lambda: len(ready) == 2, 0.01)


async def test_other_conditions_have_their_names_or_a_text() -> None:
    with pytest.raises(AssertionError, match=r"waited 0\.01 s in vain: never$"):
        await wait_until(never, 0.01)
    with pytest.raises(AssertionError, match=r"waited 0\.01 s in vain: functools\.partial\(.*never"):
        await wait_until(partial(never), 0.01)
    with pytest.raises(AssertionError, match=r"waited 0\.01 s in vain: two are ready$"):
        await wait_until(never, 0.01, what="two are ready")


async def test_timeout_of_the_condition_itself_is_raised() -> None:
    async def unanswered() -> bool:
        raise TimeoutError("no answer")

    with pytest.raises(TimeoutError, match="no answer"):
        await wait_until(unanswered)
