"""The record of the SGLang runs: every part held, and says what it has seen."""

import json

from e2e.sglang.engine.installation import HERE
from e2e.sglang.run import PARTS
from e2e.sglang.scenarios.kv_index import MIXED
from e2e.vllm.report import ROOT

RECORD = json.loads((ROOT / "bench" / "results" / "sglang.json").read_text(encoding="utf-8"))


def test_every_part_held_with_the_pinned_engine() -> None:
    assert RECORD["parts"].keys() <= PARTS.keys()
    assert all(part["held"] for part in RECORD["parts"].values())
    assert f"sglang=={RECORD['versions']['sglang']}" in (HERE / "requirements-engine.txt").read_text().splitlines()


def test_index_predicted_what_the_engine_has_reported() -> None:
    (mixed,) = [check for check in RECORD["parts"]["index"]["checks"].values() if check.get("requests") == MIXED]
    assert mixed["predicted"] == mixed["reported"] > 0
