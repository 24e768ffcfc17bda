"""A gateway where qmail's programs are installed, sendmail is ours, and the account `abc` is a user.

That is so for the gateway and what it starts alone: they have a mount namespace of their own.
"""

import os
import shutil
import smtplib
import subprocess
import sys
from email.message import EmailMessage
from pathlib import Path

from peer import OWNER, SOON, Gateway, eventually

ADDONS = Path(__file__).with_name("addons")
_INSTALL = Path(__file__).parents[2] / "contrib" / "qmail" / "install"
_ENTER = 'mount --bind "$1/sbin" /usr/sbin && mount --bind "$1/passwd" /etc/passwd && shift && exec "$@"'


class Host(Gateway):
    """`abc` has example.org and the programs; `xyz` has example.net and reads what they send."""

    def __init__(self, folder):
        super().__init__(folder)
        self.prefix = folder / "qmail"
        install = [sys.executable, _INSTALL, self.prefix / "bin", "--state", self.state]
        subprocess.run(install, check=True, timeout=60)
        path = f"{self.prefix}/bin:/usr/bin:/bin"
        self.configure("30-programs.yaml", f"dot_qmail: {{program_path: '{path}'}}\n")
        self.plug("quadratic_retry", SOON)
        (folder / "sbin").mkdir()
        (folder / "sbin" / "sendmail").symlink_to(self.prefix / "bin" / "sendmail")
        abc = f"abc:x:{OWNER}:{OWNER}::{folder}/home/abc:/bin/sh\n"
        (folder / "passwd").write_text(abc + Path("/etc/passwd").read_text())

    def start(self):
        """Start it in its own namespace."""
        super().start(within=["unshare", "-m", "sh", "-c", _ENTER, "sh", self.folder])

    def take(self, addon, name):
        """Copy a file of `addons/` into abc's home, as his own."""
        path = self.folder / "home" / "abc" / name
        shutil.copy(ADDONS / addon, path)
        path.chmod(0o700 if (ADDONS / addon).stat().st_mode & 0o100 else 0o600)
        self.own(path)
        return path

    def send(self, recipient, subject, *, sender="ann@example.net", text="x\n", **fields):
        """Send a mail as another host does."""
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = sender, recipient, subject
        for name, value in fields.items():
            message[name.replace("_", "-")] = value
        message.set_content(text)
        with smtplib.SMTP("127.0.0.1", self.port, "client.example", timeout=20) as client:
            client.send_message(message, sender, [recipient])

    def deferred(self, recipient):
        """Wait until an attempt for a recipient has been deferred."""
        eventually(lambda: self.events(recipient, "delivery.deferred"))

    def maildir_at(self, path):
        """Make a Maildir of abc's."""
        for made in (path, *(path / part for part in ("tmp", "new", "cur"))):
            made.mkdir(exist_ok=True)
            self.own(made)

    def own(self, path):
        """Make a file or folder abc's."""
        os.chown(path, OWNER, OWNER)

    def processes(self):
        """Give the folders below /proc of the gateway's processes."""
        mine = Path(f"/proc/{self._process.pid}")
        children = (mine / "task" / mine.name / "children").read_text().split()
        return [mine, *(Path("/proc") / child for child in children)]
