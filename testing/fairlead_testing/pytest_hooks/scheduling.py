"""Divides the tests among the processes of xdist, and orders them.

A file's tests stay together. All tests of the API server run in one process, since each process
would start an etcd and a kube-apiserver of its own. They begin first; then come files that start
processes, which wait; then the rest. So no process of xdist ends long after the others.
"""

import os
import random
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler.loadfile import LoadFileScheduling

_API_SERVER = re.compile(r"\bapi_server: ApiServer|mark\.api_server")
_PROCESSES = re.compile(r"[Vv]alkey|[Pp]rocess\b|LocalStack|render_chart")
API_SERVER_SCOPE = "tests of the API server"


class FileScheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """The scheduler of ``--dist loadfile``."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return API_SERVER_SCOPE if _rank(file) == 0 else file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts tests first that wait. Scopes are distributed in the order of their first tests.

    With a seed in `FAIRLEAD_TEST_ORDER`, files are in random order, and the tests of each file too.
    """
    seed = os.environ.get("FAIRLEAD_TEST_ORDER")
    if seed is not None:
        draw = random.Random(seed)
        files = sorted({item.nodeid.partition("::")[0] for item in items})
        places = dict(zip(files, draw.sample(range(len(files)), len(files)), strict=True))
        draw.shuffle(items)
        items.sort(key=lambda item: places[item.nodeid.partition("::")[0]])
    else:
        items.sort(key=lambda item: _rank(item.nodeid.partition("::")[0]))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FileScheduling | None:
    """Returns the scheduler for ``--dist loadfile``; others are xdist's own."""
    if config.getoption("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False
    return FileScheduling(config, log)


@cache
def _rank(file: str) -> int:
    """Returns 0 for tests of the API server, 1 for those of processes, 2 for others."""
    path = Path(file)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if _API_SERVER.search(text):
        return 0
    return 1 if _PROCESSES.search(text) else 2
