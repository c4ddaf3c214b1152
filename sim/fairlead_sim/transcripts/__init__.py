"""Recordings of a real vLLM, replayed against the simulated engine and compared.

``python -m fairlead_sim.transcripts DIR`` checks the claims of ``manifest.yaml``.

- ``manifest``, ``recording``: the claims and the files
- ``engine_process``, ``http_client``: an engine, and a client that keeps every byte
- ``replay``: sends the requests; ``comparison`` and ``masking`` compare the responses
- ``report``: the results as a table and as a reference page
"""
