"""Tokenizing prompts in a process of the gateway's own, for models whose ``tokenizer.json`` lies on this machine."""
