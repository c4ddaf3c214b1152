"""The command line: local mode, replay, chat, status, lint."""
