"""Owners of client names: memory and settings."""

import pytest

from fairlead.errors import SettingsError
from fairlead.fleet.client_names import MAX_NAMES_OF_DELETED_MODELS, NameHistory, name_owners, parse_client_names


def test_names_of_deleted_models_are_limited_per_namespace() -> None:
    many = {f"n{number}": "b/x" for number in range(MAX_NAMES_OF_DELETED_MODELS + 2)}
    owners = name_owners((), (), NameHistory(remembered={"llama": "a/llama", **many}))
    assert list(owners) == ["llama", *list(many)[2:]]


def test_assigned_names_are_parsed_and_mistakes_are_named() -> None:
    assert parse_client_names("") == {}
    assert parse_client_names("llama=a/llama, Qwen/Qwen3-8B=b/qwen") == {"llama": "a/llama", "Qwen/Qwen3-8B": "b/qwen"}
    for text in ("llama", "llama=a", "=a/b", "llama=A/b", "a b=a/b"):
        with pytest.raises(SettingsError, match="FAIRLEAD_CLIENT_NAMES"):
            parse_client_names(text)
