"""Fairness between tenants and isolation of their caches.

benchmark: gateways that share service in the fleet simulator, a flood and steady tenants
flood_benchmark: a flood and steady tenants on processes, compared with one ideal queue
cache_timing: an attacker who guesses prompts of others by time, and one who aims prompts
"""
