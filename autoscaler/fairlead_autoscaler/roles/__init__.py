"""What is particular to prefill and decode apart: how engines are divided, and when decode could take prompts. Pure
functions.

    split(total, prefill_engines, decode_engines, now=…) -> Split     a fixed number of engines, by the ratio law
    slack(profile, decoding, itl_seconds=…, ttft_seconds=…) -> Slack  what a decode engine could take of short prompts

How many engines each role needs is the scaling core's business (``scaling.need``), as of any pool.
"""

from fairlead_autoscaler.roles.convertible import DecodeLoad, DecodeSlack, decode_slack
from fairlead_autoscaler.roles.ratio import KEEP_FACTOR, RoleSplit, split_by_role

__all__ = ["KEEP_FACTOR", "DecodeLoad", "DecodeSlack", "RoleSplit", "decode_slack", "split_by_role"]
