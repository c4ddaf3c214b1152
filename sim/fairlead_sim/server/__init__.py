"""The simulated engine as a real HTTP server that a client cannot tell from vLLM 0.32.

In the order of a request: ``connection`` (bytes in, bytes out) → ``routes`` (path and method) → one room a family of endpoints
(``chat``, ``completions``, …) → ``requests`` (what was asked) → ``driver`` (the scheduler core in real time) → ``streams`` and
``whole`` (the answer's bytes). ``engine`` holds it together; ``process`` hosts many engines in one process.
"""
