"""Prefill and decode sized apart: how many engines each role needs, how a fixed number is divided, and when decode takes
prompts.

Pure functions of a step profile, objectives and observed rates; each result carries its rule and its reason.

    size_prefill(profile, traffic, objectives, transfer=…) -> Need    prompt work, at most 0.78 busy, and the tail of the wait
    size_decode(profile, traffic, objectives) -> Need                 the batch at the inter-token objective, KV, sequences
    split(total, prefill_engines, decode_engines, now=…) -> Split     a fixed number of engines, by the ratio law
    Balancer(…).step(seen) -> Split                                   the same every few seconds, from what was counted
    direction(prefill_seconds, total_seconds, rates) -> Direction     which role is short, by what was measured
    slack(profile, decoding, objectives, engines=n) -> Slack          what decode engines may take of short prompts

``traffic`` is a sequence of ``Traffic`` classes; one class of means will do. What arrives counts, not what was served. A
``Need`` says how many engines it is exactly (``engines``, margin included), so that callers can add forecasts and hysteresis
before they round.
"""

from fairlead_autoscaler.roles.balance import Balancer, Seen
from fairlead_autoscaler.roles.convertible import Slack, slack
from fairlead_autoscaler.roles.ratio import Direction, Rates, Split, direction, rates, split
from fairlead_autoscaler.roles.sizing import DECODE_FILL, PREFILL_BUSY, size_decode, size_prefill
from fairlead_autoscaler.roles.steady import Batch, decode_batch, mean_prefill_seconds, prefill_seconds
from fairlead_autoscaler.roles.values import Need, Traffic, Transfer

__all__ = [
    "DECODE_FILL",
    "PREFILL_BUSY",
    "Balancer",
    "Batch",
    "Direction",
    "Need",
    "Rates",
    "Seen",
    "Slack",
    "Split",
    "Traffic",
    "Transfer",
    "decode_batch",
    "direction",
    "mean_prefill_seconds",
    "prefill_seconds",
    "rates",
    "size_decode",
    "size_prefill",
    "slack",
    "split",
]
