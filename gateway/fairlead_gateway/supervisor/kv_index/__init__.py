"""The KV-cache index of a gateway, in its supervisor.

In reading order: `index_service` (all models), `model_index` (one model), `index_source` (where
reports of engines come from), `drift_detector` (how good an instance's index is). Then the tokens
of prompts: `token_fetcher`, `token_source`, `tokenize_api` (engines), `local_tokenizer` (this
machine), and `alignment_store` (what was learned, in Redis).
"""
