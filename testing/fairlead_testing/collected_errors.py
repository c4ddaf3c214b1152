"""Errors of objects as Python collects them: sockets and transports that nothing has closed."""

import gc
import sys

import pytest


def collected_errors(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns a list that receives each error of an object that is collected from now on."""
    gc.collect()
    found: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: found.append(str(report.exc_value)))
    return found
