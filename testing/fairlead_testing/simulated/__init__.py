"""A gateway in simulated time and on a simulated network, with hostile engines and clients.

In reading order:

- `event_loop`: an event loop whose clock jumps to the next timer, and connections with TCP's signs
  of a reset.
- `hostile_engine`: engines and clients that execute a script, and what they receive.
- `scene`: a gateway between them, and what is left of it afterwards.
"""
