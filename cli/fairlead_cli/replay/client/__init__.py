"""The open-loop client: `prompts` (requests as bytes) → `open_loop_client` → `connection` →
`streamed_answer` → `replay_result`.
"""
