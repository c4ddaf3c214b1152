# ruff: noqa: INP001  # it is handed to python3 -c
"""What `helm test` runs: is the gateway ready behind its Service, does it know who calls, does it answer a completion?"""

import json
import os
import ssl
import sys
import urllib.error
import urllib.request

GATEWAY, MODEL, KEY = os.environ["GATEWAY"], os.environ.get("MODEL"), os.environ.get("KEY")
# The certificate is for the name that clients use, which is not the Service's.
ANY = ssl._create_unverified_context()


def ask(path, body=None):
    """Status, header fields and JSON of an answer."""
    fields = {"content-type": "application/json", **({"authorization": f"Bearer {KEY}"} if KEY else {})}
    asked = urllib.request.Request(GATEWAY + path, json.dumps(body).encode() if body else None, fields)
    try:
        with urllib.request.urlopen(asked, timeout=60, context=ANY) as answer:
            return answer.status, answer.headers, json.load(answer)
    except urllib.error.HTTPError as answer:
        return answer.code, answer.headers, json.load(answer)


def main():
    """What is wrong, None when all is well."""
    status, _, said = ask("/readyz")
    print("readyz", status, said)
    if status != 200:
        return "the gateway is not ready"
    status, _, said = ask("/v1/models")
    print("models", status, said)
    if status == 401 and not KEY:
        print("the keys are your own: nothing more can be asked without one")
        return None
    if status != 200:
        return "the gateway does not list its models"
    if MODEL:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Are you there?"}], "max_tokens": 4}
        status, fields, said = ask("/v1/chat/completions", body)
        print("completion", status, fields.get("x-fairlead-instance"), said)
        if status != 200 or not fields.get("x-fairlead-instance"):
            return f"{MODEL} does not answer"
    return None


sys.exit(main())
