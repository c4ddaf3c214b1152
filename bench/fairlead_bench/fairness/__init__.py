"""Fairness between tenants and isolation of their caches, in simulated time.

- `fair_gateways`: gateways with admission that share service, in the fleet simulator.
- `traffic`: one flooding tenant and three steady ones.
- `service_gap`: the service that tenants got while they waited.
- `cache_timing`: an attacker who guesses prompts of others by time, and one who aims prompts.
- `benchmark`: the runs and their rows.
"""
