"""Settings: read once, typed, never shown where they are secrets, and all of them documented."""

import re
from pathlib import Path

import pytest

from fairlead.errors import SettingsError
from fairlead.settings import (
    TOOL_VARIABLES,
    GatewaySettings,
    read_settings,
    settings_table,
    settings_types,
    unknown_variables,
)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "settings.md").read_text()


def test_variable_becomes_a_field_and_empty_is_unset() -> None:
    settings = read_settings(GatewaySettings, {"FAIRLEAD_MANAGE_TOKEN": "t", "FAIRLEAD_HASH_SECRET": "", "OTHER": "x"})
    assert (settings.manage_token, settings.hash_secret) == ("t", None)


@pytest.mark.parametrize("value", ["a\nb", "a\x00", "a\udcff"])
def test_undecodable_value_is_refused_without_showing_it(value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings(GatewaySettings, {"FAIRLEAD_MANAGE_TOKEN": value})
    assert caught.value.field == "FAIRLEAD_MANAGE_TOKEN"
    assert "a" + value[1:] not in str(caught.value)


@pytest.mark.parametrize("kind", settings_types().values())
def test_secret_is_never_printed(kind: type) -> None:
    secrets = {row.variable for row in settings_table() if row.secret}
    shown = repr(read_settings(kind, dict.fromkeys(secrets, "hush")))
    assert "hush" not in shown
    assert "***" in shown


def test_misspelt_variable_names_the_closest_one() -> None:
    problems = unknown_variables(
        {"FAIRLEAD_MANAGE_TOKE": "x", "FAIRLEAD_CACHE": "/c", "PATH": "/bin", "FAIRLEAD_MANAGE_TOKEN": "y"}
    )
    assert problems == ["FAIRLEAD_MANAGE_TOKE is not a setting; did you mean FAIRLEAD_MANAGE_TOKEN?"]


def test_page_lists_every_setting_and_no_other() -> None:
    documented = set(re.findall(r"^\| `(FAIRLEAD_\w+)`", PAGE, re.MULTILINE))
    assert documented == {row.variable for row in settings_table()}.union(TOOL_VARIABLES)


def test_every_variable_in_the_code_is_a_setting() -> None:
    known = {row.variable for row in settings_table()}.union(TOOL_VARIABLES)
    folders = ("fairlead", "gateway", "kvstore", "sim", "cli", "operator", "autoscaler", "downloader", "scripts")
    named = {
        name
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"FAIRLEAD_[A-Z][A-Z_]+", path.read_text())
    }
    assert named - known == set()
