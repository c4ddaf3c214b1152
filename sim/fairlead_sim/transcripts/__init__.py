"""Recordings of a real vLLM, replayed against the simulated engine and compared, one by one.

``manifest.yaml`` says for each recording how equal it must be; ``python -m fairlead_sim.transcripts DIR`` proves it.
"""
