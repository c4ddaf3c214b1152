"""Admission control: the decision to admit a request, to queue it in the gateway, or to reject it.

Pure: no clock and no I/O. Callers pass the time and the load of the instances.

In reading order: `policy` decides. `request_queue` orders queued requests, with `fair_share`
between tenants; `caller_bounds` bounds them. `kv_capacity` checks memory, with `kv_peak` and
`output_lengths`; `memory_hold` bounds how long a request waits for it at the expense of others.
`length_classes` separates long prompts from short ones. `drain_rate` estimates
waits; `backlog_decay` estimates backlogs.
"""
