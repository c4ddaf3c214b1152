"""From a parsed request to its instance.

- `admission_queue`: admits, queues or refuses a request, and starts it at its chosen instance.
- `model_admission`: the queue of one model.
"""
