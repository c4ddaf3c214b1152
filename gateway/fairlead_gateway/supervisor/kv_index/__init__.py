"""The KV-cache index of a gateway, in its supervisor.

In reading order: `index_service` (all models), `model_index` (one model, and how good its
index is), `index_source` (where reports of engines come from). `index_finder` finds indexes of
which the fleet says nothing. Then the tokens of prompts:
`token_fetcher`, `tokenize_api` (engines), `local_tokenizer` (this
machine), and `alignment_store` (what was learned, in Redis).
"""
