"""The KV-cache index of a gateway, in its supervisor.

In reading order: `index_service` (all models), `model_index` (one model, and how good its
index is) and `event_reader` (the blocks of engines). `event_discovery` finds engines of which the
fleet does not say that they publish. Then the tokens of prompts: `token_fetcher`, `tokenize_api`,
and `link_store` (what was learned, in Redis).
"""
