"""Redis keys: one slot per model, and no name reaches into another's keys."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import BadInput
from fairlead_kvstore.index import redis_keys

PART = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/"), min_size=1, max_size=20)


def test_keys_have_the_documented_names() -> None:
    assert redis_keys.decisions("chat/llama-70b") == "fl1:{chat/llama-70b}:dec"
    assert redis_keys.sent_prompts("chat/llama-70b") == "fl1:{chat/llama-70b}:sent"
    assert redis_keys.prompt_links("chat/llama-70b") == "fl1:{chat/llama-70b}:lnk"


@given(PART, PART)
def test_hash_tag_is_the_model_for_any_name(namespace: str, name: str) -> None:
    key = f"{namespace}/{name}"
    names = (redis_keys.decisions(key), redis_keys.sent_prompts(key), redis_keys.prompt_links(key))
    assert len({key[key.index("{") + 1 : key.index("}")] for key in names}) == 1
    assert all(key.count("{") == key.count("}") == 1 for key in names)


@given(st.lists(st.tuples(PART, PART), min_size=2, max_size=2, unique=True))
def test_two_models_never_share_a_key(models: list[tuple[str, str]]) -> None:
    first, second = (tuple(unicodedata.normalize("NFC", part) for part in model) for model in models)
    names = {redis_keys.decisions("/".join(first)), redis_keys.decisions("/".join(second))}
    assert len(names) == (1 if first == second else 2)


def test_composed_and_decomposed_names_give_one_key() -> None:
    assert redis_keys.decisions("ns/caf\u00e9") == redis_keys.decisions("ns/cafe\u0301")


@pytest.mark.parametrize("key", ["noslash", "/name", "ns/", "ns/a\nb", "ns/" + "x" * 254, "ns/\ud800"])
def test_invalid_model_keys_are_refused(key: str) -> None:
    with pytest.raises(BadInput):
        redis_keys.decisions(key)


@pytest.mark.parametrize("key", ["default/tiny", "chat/Qwen/Qwen3-8B", "a b/{odd}%*[x]"])
def test_model_is_read_from_an_index_key(key: str) -> None:
    _, idx, _ = redis_keys.index_keys(key)
    assert redis_keys.model_of_index_key(idx.encode()) == key


@pytest.mark.parametrize("name", [b"fl1:{default/tiny}:dec", b"fl1:{tiny/0}:idx", b"fl1:{\xff/x/0}:idx", b"other"])
def test_foreign_keys_are_no_index(name: bytes) -> None:
    assert redis_keys.model_of_index_key(name) is None
