"""The accelerator mix and the division between prefill and decode.

benchmark: the command line and the order of the run
roofline, workloads, throughput_tables: accelerators, traffic, throughput of each shape
routed_fleet: mixed fleets behind the gateway's router
closed_loop: mixed fleets under the autoscaler
traffic_shift, decode_slack: scenarios of prefill and decode
prefill_decode_rows: rows of these scenarios
"""
