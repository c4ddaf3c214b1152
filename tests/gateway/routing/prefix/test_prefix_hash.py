"""The prefix hash: equal starts give equal hashes; what decides the cache seeds them."""

from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.routing import prefix_chain
from fairlead_gateway.routing.prefix.prefix_hash import block_ends

SECRET = b"a secret"


def test_equal_beginnings_share_hashes_up_to_the_first_difference() -> None:
    left = prefix_chain(b"x" * 1024 + b"left" * 200, secret=SECRET, seed=b"m")
    right = prefix_chain(b"x" * 1024 + b"right" * 200, secret=SECRET, seed=b"m")
    assert left.hashes[:4] == right.hashes[:4]
    assert not set(left.hashes[4:]) & set(right.hashes[4:])


def test_a_changed_byte_changes_every_later_hash() -> None:
    text = bytes(range(256)) * 8
    changed = b"!" + text[1:]
    assert not set(prefix_chain(text, secret=SECRET, seed=b"m").hashes) & set(
        prefix_chain(changed, secret=SECRET, seed=b"m").hashes
    )


def test_model_and_secret_seed_the_chain() -> None:
    text = b"y" * 4096
    chain = prefix_chain(text, secret=SECRET, seed=b"model-a")
    assert not set(chain.hashes) & set(prefix_chain(text, secret=SECRET, seed=b"model-b").hashes)
    assert not set(chain.hashes) & set(prefix_chain(text, secret=b"other", seed=b"model-a").hashes)


def test_blocks_grow_with_depth() -> None:
    chain = prefix_chain(b"z" * 100_000, secret=SECRET, seed=b"m")
    sizes = [end - start for start, end in zip((0, *chain.ends), chain.ends, strict=False)]
    assert sizes[:32] == [256] * 32
    assert set(sizes[32:88]) == {1024}
    assert set(sizes[88:]) == {4096}


def test_a_prompt_beyond_the_block_limit_is_cut_not_refused() -> None:
    chain = prefix_chain(b"z" * 100_000, secret=SECRET, seed=b"m", blocks=10)
    assert len(chain.hashes) == 10


@given(text=st.binary(max_size=20_000), cut=st.integers(0, 20_000))
def test_a_prefix_of_the_text_has_a_prefix_of_the_chain(text: bytes, cut: int) -> None:
    whole = prefix_chain(text, secret=SECRET, seed=b"m")
    part = prefix_chain(text[:cut], secret=SECRET, seed=b"m")
    assert whole.hashes[: len(part.hashes)] == part.hashes
    assert all(end <= len(text) for end in whole.ends)
    assert len(text) - max(whole.ends, default=0) < max(256, 4096)


@given(size=st.integers(0, 300_000), start=st.integers(0, 5_000))
def test_blocks_are_those_that_the_text_fills(size: int, start: int) -> None:
    text = b"q" * start + b"z" * size + b"q"
    part = prefix_chain(text, secret=SECRET, seed=b"m", start=start, end=start + size)
    assert max(part.ends, default=0) <= size
    assert block_ends(len(part.hashes) + 1)[-1] > size
    whole = prefix_chain(text[start:-1], secret=SECRET, seed=b"m")
    assert (part.hashes, part.ends, part.tail) == (whole.hashes, whole.ends, whole.tail)
