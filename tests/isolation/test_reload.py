"""The life of a drop-in with a process of its own, in a running gateway: changed, broken, removed."""

import os
import time
from pathlib import Path

import pytest

from gateway.errors import GatewayError

SOURCE = """\
import os
from gateway import Plugin, Reject, hookimpl


class Far(Plugin):
    @hookimpl
    def shutdown(self):
        (self.site.state / "ended-{version}").write_text(str(os.getpid()))

    @hookimpl
    def mail(self, transaction):
        return Reject("5.7.1", "{version} " + str(os.getpid()))
"""


def says(client):
    """Give what the plugin says at MAIL: its version and its process."""
    code, text = client.mail("ann@example.com")
    return text.decode().split()[-2:] if code == 553 else code


def until(met):
    end = time.monotonic() + 20
    while not met():
        assert time.monotonic() < end
        time.sleep(0.02)


def put(gateway, text):
    path = gateway.base / "plugins" / "far.py"
    path.write_text(text)
    path.chmod(0o644)


def test_the_next_session_has_the_new_file_and_the_old_process_ends_with_its_last(mailward_gateway, tmp_path):
    source = tmp_path / "far.py"
    source.write_text(SOURCE.format(version="one"))
    gateway = mailward_gateway(source, yaml="far: {isolation: process}\n")
    with gateway.client() as old:
        old.ehlo()
        version, first = says(old)
        assert version == "one"
        gateway.reload("far: {isolation: process}\nbadmailfrom: {senders: [x@example.com]}\n")
        with gateway.client() as same:
            same.ehlo()
            assert says(same) == ["one", first], "what did not change keeps its process"
        put(gateway, SOURCE.format(version="two"))
        gateway.reload()
        with gateway.client() as new:
            new.ehlo()
            assert says(new)[0] == "two"
            assert says(old) == ["one", first]
        put(gateway, "def (")
        with pytest.raises(GatewayError, match=r"far\.py:1"):
            gateway.reload()
        with gateway.client() as kept:
            kept.ehlo()
            assert says(kept)[0] == "two"
        assert Path(f"/proc/{first}").exists()
    until((gateway.base / "var" / "ended-one").exists)
    until(lambda: not Path(f"/proc/{first}").exists())
    (gateway.base / "plugins" / "far.py").unlink()
    gateway.reload("")
    with gateway.client() as gone:
        gone.ehlo()
        assert says(gone) == 250
    assert os.getpid() != int(first)
