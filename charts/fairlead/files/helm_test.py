# ruff: noqa: INP001  # passed to python3 -c
"""The script of `helm test`: the gateway is ready, lists its models, and answers a completion.

Over HTTPS it asks only whether the gateway is ready, and sends no key. The gateway cannot be
verified: its certificate has the name that clients use, not the name of the Service.
"""

import json
import os
import ssl
import sys
import urllib.error
import urllib.request

GATEWAY, MODEL, KEY = os.environ["GATEWAY"], os.environ.get("MODEL"), os.environ.get("KEY")
IS_HTTPS = GATEWAY.startswith("https:")
UNVERIFIED = ssl._create_unverified_context()


def send_request(path, body=None):
    """Returns status, header fields and JSON of the response."""
    headers = {
        "content-type": "application/json",
        **({"authorization": f"Bearer {KEY}"} if KEY and not IS_HTTPS else {}),
    }
    request = urllib.request.Request(GATEWAY + path, json.dumps(body).encode() if body else None, headers)
    try:
        with urllib.request.urlopen(request, timeout=60, context=UNVERIFIED) as response:
            return response.status, response.headers, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.load(error)


def main():
    """Returns the first failure as text, or None."""
    status, _, answer = send_request("/readyz")
    print("readyz", status, answer)
    if status != 200:
        return "the gateway is not ready"
    if IS_HTTPS:
        print("over HTTPS, nothing that needs a key is tested")
        return None
    status, _, answer = send_request("/v1/models")
    print("models", status, answer)
    if status == 401 and not KEY:
        print("the keys are your own: without one, nothing more can be tested")
        return None
    if status != 200:
        return "the gateway does not list its models"
    if MODEL:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Are you there?"}], "max_tokens": 4}
        status, headers, answer = send_request("/v1/chat/completions", body)
        print("completion", status, headers.get("x-fairlead-instance"), answer)
        if status != 200 or not headers.get("x-fairlead-instance"):
            return f"{MODEL} does not answer"
    return None


sys.exit(main())
