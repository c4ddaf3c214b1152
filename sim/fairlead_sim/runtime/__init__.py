"""One simulated engine in real time.

- ``settings``: the settings of an engine
- ``simulated_engine``: its state, and every request in it; ``engine_factory`` builds the parts
- ``realtime_driver``: a scheduler core on the wall clock
- ``lora_adapters``, ``sleep_mode``, ``fault_injection``: models, sleep levels, faults on demand
"""
