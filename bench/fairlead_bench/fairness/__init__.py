"""Fairness between tenants and isolation of their caches.

flood_benchmark: a flood and steady tenants on processes, compared with one ideal queue
fair_cluster: gateways that share service in the fleet simulator, as the flood predicts them
cache_timing: an attacker who guesses prompts of others by time, and one who aims prompts
"""
