"""Admission control: the decision to admit a request, to queue it in the gateway, or to reject it.

Its modules are pure: no clock and no I/O. Callers pass the time and the load of the instances.

In reading order: `admission_policy` decides. `request_queue` orders queued requests, with
`fair_share` between tenants, and bounds them. `kv_capacity` checks memory, with `output_lengths`.
`worker` has the queues of a worker.
"""
