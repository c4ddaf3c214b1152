"""Generation requests and the answers of the simulated engine.

- ``requests``: parsed and validated requests
- ``reply_script``: the whole answer, drawn before its first token, with made-up log-probabilities
- ``markup_writer``: answers with reasoning and tool calls of their own
- ``reply_parser``: its reasoning and tool calls
- ``responses``, ``streaming``: answers in progress, whole or as a stream
"""
