"""The accelerator mix and the division between prefill and decode.

benchmark: mixed fleets behind the gateway's router; scenarios of prefill and decode
throughput_tables: accelerators, traffic, throughput of each shape
"""
