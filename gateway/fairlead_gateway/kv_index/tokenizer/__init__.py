"""Tokenization of prompts in a process of its own, for models whose `tokenizer.json` is local.

In reading order: `client` (in the supervisor), `messages`, `process`.
"""
