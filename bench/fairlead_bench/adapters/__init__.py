"""Placement of LoRA adapters on a virtual clock.

- `adapter_fleet`: engines with slots, their loads and requests.
- `placement_rules`: the rules that are compared.
- `benchmark`: the comparison.
"""
