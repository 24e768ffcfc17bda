"""What a worker asks of the child of an account, as it may be written by hand."""

import base64


def exists(name, **changes):
    asked = {"stage": "exists", "plugin": "dot_qmail", "dash": "", "ext": ""}
    return {**asked, "address": f"{name}@example.org", "original": f"{name}@example.org", **changes}


def deliver(name, **changes):
    more = {"number": 0, "id": "id-1", "sender": "", "birth": 1.0, "origin": "smtp", "attempt": 1}
    more |= {"stage": "deliver", "header": base64.b64encode(b"Subject: x\n").decode(), "body": ""}
    return {**exists(name), **more, **changes}
