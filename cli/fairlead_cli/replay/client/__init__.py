"""The open-loop client: `open_loop_client` sends requests when they are due."""
