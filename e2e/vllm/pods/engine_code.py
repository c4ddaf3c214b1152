"""The code that real engines in pods meet, and its digest.

The record of the runs in pods names the digest. A test compares it with the digest of the present
code, so a change of this code needs a new record. Comments, docstrings and layout do not count.
"""

import ast
import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
RECORD = ROOT / "bench" / "results" / "vllm-pods.json"
PARTS = ("pods-lifecycle", "pods-hung", "pods-handoff")
"""The parts that the record must have."""
RENEWAL = ".venv/bin/python e2e/vllm/run.py --only pods"
"""The command that renews the record: half an hour on two cores, as root."""
PATHS = (
    "fairlead/engines/containers/base.py",
    "fairlead/engines/containers/prestop_drain.py",
    "fairlead/engines/containers/vllm.py",
    "fairlead/engines/containers/weights.py",
    "fairlead/engines/metric_names.py",
    "fairlead/engines/vllm.py",
    "kvstore/fairlead_kvstore/events/decoder.py",
    "kvstore/fairlead_kvstore/events/payloads.py",
    "kvstore/fairlead_kvstore/events/types.py",
    "kvstore/fairlead_kvstore/events/zmtp.py",
    "operator/fairlead_operator/render/pod_template.py",
)
"""The modules that start an engine in a pod, read its metrics, and read and decode its events."""


def digest() -> str:
    """Returns the digest of the code of ``PATHS``."""
    seen = hashlib.sha256()
    for path in PATHS:
        seen.update(f"{path}\n{code_of((ROOT / path).read_text())}\n".encode())
    return seen.hexdigest()[:16]


def code_of(source: str) -> str:
    """Returns a module as text without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not _is_text(one)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
