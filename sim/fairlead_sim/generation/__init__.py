"""Generation requests and the answers of the simulated engine.

- ``requests``, ``prompts``: parsed and validated requests
- ``reply_script``: the whole answer, drawn before its first token; ``greedy_decoding`` and
  ``structured_output`` for temperature 0 and required forms
- ``responses``, ``streaming``: answers in progress, whole or as a stream
- ``logprobs``: made-up log-probabilities
"""
