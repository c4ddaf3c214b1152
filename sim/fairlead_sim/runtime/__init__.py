"""One simulated engine in real time.

- ``settings``: the settings of an engine
- ``simulated_engine``: its state and its parts, and every request in it
- ``realtime_driver``: a scheduler core on the wall clock
- ``lora_adapters``, ``fault_injection``: models, and faults on demand
"""
