"""Access to the management port.

- `access_guard`: hosts, origins, methods and tokens of every request.
- `access_scope`: what a token may see, and which route needs which permission.
- `manage_tokens`: finds the scope of the token that a request carries.
- `token_file`: the file of management tokens.
"""
