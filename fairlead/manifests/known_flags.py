"""The flags of the engines that the chart's images hold, as `scripts/generators/engine_flags.py`
took them from the engines themselves.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final

from fairlead.api.spec.engine import EngineType

CHECKED_ENGINES: Final = (EngineType.VLLM, EngineType.SGLANG)
"""Engines that the chart has an image for. They do not start with a flag that they do not know."""
_ENGINE_TAG: Final = re.compile(r"(?:^|(?<!lmcache)/)(?:vllm-openai|vllm-cpu|vllm|sglang):v?(\d+\.\d+\.\d+)")
_BOOLEANS: Final = ("true", "false")


def checked_version(engine: EngineType) -> str | None:
    """Returns the release of the flags; None for engines without an image of the chart."""
    return str(_known()[engine.label]["version"]) if engine in CHECKED_ENGINES else None


def image_version(image: str) -> str:
    """Returns the release of the engine in an image by its tag; empty if it does not say it."""
    found = _ENGINE_TAG.search(image)
    return found[1] if found else ""


def is_checked_image(engine: EngineType, image: str | None) -> bool:
    """Returns True for an image with the release that the flags are of. None: the chart's image."""
    return engine in CHECKED_ENGINES and (not image or image_version(image) == checked_version(engine))


def flag_problem(engine: EngineType, name: str, value: str | None) -> str:
    """Returns why the engine does not start with a flag; empty if it knows the flag.

    value: None for a flag without a value.
    """
    flags, plain = _flags(engine), name.partition(".")[0]
    # The engines take the beginning of a flag for the flag. Their lists have no short names.
    if plain.startswith("--") and not any(flag.startswith(plain) for flag in flags):
        return f"{engine.value} {checked_version(engine)} has no flag {plain}"
    opposite = f"--no-{plain.removeprefix('--')}"
    if value is not None and value.lower() in _BOOLEANS and opposite in flags:
        return f"{plain} takes no value: {plain} turns it on, and {opposite} turns it off"
    return ""


def is_known_flag(engine: EngineType, flag: str) -> bool:
    return flag in _flags(engine)


@cache
def _flags(engine: EngineType) -> frozenset[str]:
    return frozenset(_known()[engine.label]["flags"])


@cache
def _known() -> Mapping[str, Mapping[str, Any]]:
    text = files("fairlead.manifests").joinpath("engine_flags.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found
