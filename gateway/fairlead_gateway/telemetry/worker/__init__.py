"""Access log and traces of one worker; off unless the settings ask for them.

- `observers`: connects both to the gateway.
- `settings`: the settings of both, from the environment.
- `access_log`: one line per request.
- `tracer`, `trace_record`, `otlp_exporter`: spans of sampled requests.
- `background_writer`: the thread that writes.
"""
