"""The accelerator mix and the division between prefill and decode.

benchmark: the command line; mixed fleets behind the gateway's router and under the autoscaler
throughput_tables: accelerators, traffic, throughput of each shape
prefill_decode_rows: scenarios of prefill and decode
"""
