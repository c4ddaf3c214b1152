"""The run of 200 adapters on real engines: how it recognizes the adapter of an answer."""

import json

from e2e.vllm.report import ROOT
from e2e.vllm.scenarios.adapters import ADAPTERS, SLOTS, answering

RECORD = ROOT / "bench" / "results" / "vllm.json"

EXPECTED = {"sql": "select all", "legal": "see below", "tiny": "why not"}


def test_text_is_of_the_adapter_whose_answer_begins_like_it() -> None:
    assert answering("select all", EXPECTED) == {"sql"}
    assert answering("sele; the rest is of another engine", EXPECTED) == {"sql"}
    assert answering("s", EXPECTED) == {"sql", "legal"}
    assert answering("?", EXPECTED) == set()


def test_record_has_no_failed_request_and_no_wrong_answer() -> None:
    part = json.loads(RECORD.read_text(encoding="utf-8"))["parts"]["adapters"]
    assert part["held"]
    learned, killed = part["checks"].values()
    assert learned["adapters"] == ADAPTERS
    assert learned["answers"] == ADAPTERS + 1  # the base model, too
    assert killed["requests"] >= 900
    assert (killed["failed"], killed["wrong"]) == (0, 0)
    assert killed["most_adapters_on_an_engine"] <= SLOTS
