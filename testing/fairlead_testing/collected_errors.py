"""Errors of objects as Python collects them: sockets and transports that nothing has closed."""

import asyncio
import gc
import os
import sys
from typing import Any

import pytest


def collected_errors(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns a list that receives each error of an object that is collected from now on."""
    gc.collect()
    found: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: found.append(str(report.exc_value)))
    return found


def label_transports() -> None:
    """Makes warnings about transports that nothing has closed name the test that opened them.

    Why: objects are collected later, so that pytest reports the warning with another test.
    """
    transport: Any = asyncio.selector_events._SelectorTransport  # type: ignore[attr-defined]
    initialize, describe = transport.__init__, transport.__repr__

    def initialize_and_label(self: Any, *arguments: Any, **options: Any) -> None:
        initialize(self, *arguments, **options)
        self._extra["test"] = os.environ.get("PYTEST_CURRENT_TEST")

    def describe_with_label(self: Any) -> str:
        return f"{describe(self)}, opened in {self.get_extra_info('test')}"

    transport.__init__, transport.__repr__ = initialize_and_label, describe_with_label
