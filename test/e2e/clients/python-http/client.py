"""requests, httpx, urllib and websockets as test clients; see ../README.md."""

import hashlib
import json
import sys

library, action, url = sys.argv[1:4]


def by_requests(method, body, headers):
    import requests

    with requests.Session() as session:
        answer = session.request(method, url, data=body, headers=headers, timeout=30, allow_redirects=False)
        return answer.status_code, answer.headers, answer.content


def by_httpx(method, body, headers):
    import httpx

    # Without this it reads no variables of the trust store but SSL_CERT_FILE, which is what the test sets.
    with httpx.Client(timeout=30) as client:
        answer = client.request(method, url, content=body, headers=headers)
        return answer.status_code, answer.headers, answer.content


def by_urllib(method, body, headers):
    import urllib.error
    import urllib.request

    request = urllib.request.Request(url, data=body, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.headers, refused.read()


def websocket():
    from websockets.sync.client import connect

    with connect(url, open_timeout=20, max_size=None) as socket:
        texts = ["hello", "\u00e4" * 1000, "x" * 300_000]
        for text in texts:
            socket.send(text)
        return {"status": 101, "echoed": sum(socket.recv(timeout=20) == text for text in texts)}


def chunks():
    for _ in range(64):
        yield b"z" * 16384


def main():
    if action == "websocket":
        return websocket()
    call = {"requests": by_requests, "httpx": by_httpx, "urllib": by_urllib}[library]
    body = {"get": None, "post": b'{"n":1}', "upload": None if library == "urllib" else chunks()}[action]
    if action == "upload" and library == "urllib":
        body = b"z" * 16384 * 64
    headers = {"Content-Type": "application/json"} if body else {}
    status, fields, content = call("GET" if body is None else "POST", body, headers)
    return {
        "status": status,
        "type": fields.get("content-type", ""),
        "length": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "text": content[:65536].decode("utf-8", "replace") if len(content) <= 65536 else "",
    }


try:
    print(json.dumps(main()))
except Exception as error:  # the test decides what it means
    print(json.dumps({"status": 0, "error": f"{type(error).__name__}: {error}"}))
