"""Mail servers of others that take all mail and keep it: what each one saw is read out of its queue.

Exim and OpenSMTPD conflict with Postfix as packages: they run from folders that their packages were unpacked
into, in a mount namespace where the users that they were built for exist.
"""

import os
import pwd
import re
import subprocess
from pathlib import Path

from peer import connected, eventually, free_port, program
from test_postfix import MASTER

EXIM = Path("/opt/exim-peer")
OPENSMTPD = Path("/opt/opensmtpd-peer")
#: Users that the packages would have made.
USERS = {"opensmtpd": 64001, "opensmtpq": 64002, "Debian-exim": 64003}

POSTFIX_CONF = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/log
maillog_file_prefixes = {folder}
myhostname = peer.example
mydestination =
alias_maps =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_recipient_restrictions = check_client_access static:HOLD, permit_mynetworks, reject
smtpd_hard_error_limit = 10000
smtpd_soft_error_limit = 10000
smtpd_junk_command_limit = 10000
smtpd_error_sleep_time = 0
smtpd_forbidden_commands =
smtpd_client_connection_count_limit = 0
smtpd_client_port_logging = yes
"""

EXIM_CONF = """\
primary_hostname = peer.example
spool_directory = {folder}/spool
log_file_path = {folder}/spool/log-%s
keep_environment =
daemon_smtp_ports = {port}
local_interfaces = 127.0.0.1
tls_advertise_hosts =
chunking_advertise_hosts = *
queue_only
smtp_enforce_sync = false
smtp_accept_max = 0
smtp_accept_max_nonmail = 10000
smtp_accept_max_per_connection = 10000
smtp_max_unknown_commands = 10000
smtp_max_synprot_errors = 10000
acl_smtp_rcpt = all
acl_smtp_data = all
received_header_text = Received: x
begin acl
all:
  accept
"""

OPENSMTPD_CONF = """\
listen on 127.0.0.1 port {port} hostname peer.example
action "keep" relay
match from any for any action "keep"
"""


class Receiver:
    """A server in a folder of its own."""

    #: Whether it knows BDAT, and takes commands before it has answered the last one.
    chunking = pipelining = True

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        folder.mkdir(mode=0o755)
        self.prepare()

    def prepare(self):
        """Write its configuration."""

    def start(self):
        eventually(lambda: connected(self.port))

    def stop(self): ...

    def senders(self):
        """Give the envelope sender of each message that it has taken."""

    def cut_off(self):
        """Give the ports of clients that it has cut off in the midst of what they said."""
        return set()


class Postfix(Receiver):
    def prepare(self):
        for name in ("config", "queue", "data"):
            (self.folder / name).mkdir()
        os.chown(self.folder / "data", pwd.getpwnam("postfix").pw_uid, -1)
        (self.folder / "config" / "main.cf").write_text(POSTFIX_CONF.format(folder=self.folder))
        (self.folder / "config" / "master.cf").write_text(MASTER.format(port=self.port))

    def start(self):
        self._run("start")
        super().start()

    def stop(self):
        self._run("stop")

    def senders(self):
        # A queue file's records are a letter, a length and a text: S is the sender, and comes before content.
        found = [path.read_bytes() for path in (self.folder / "queue" / "hold").rglob("*") if path.is_file()]
        return [re.search(rb"S.([!-~]*@sender\.example)", one, re.DOTALL)[1].decode() for one in found]

    def cut_off(self):
        # For a field of a header among the commands (221), and for a BDAT without a size (521).
        told = r"(?:non-SMTP command|malformed BDAT command syntax) from \S+\]:(\d+): "
        return {int(port) for port in re.findall(told, (self.folder / "log").read_text())}

    def _run(self, command):
        words = [program("postfix"), "-c", self.folder / "config", command]
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, (done.stdout, done.stderr)


class Unpacked(Receiver):
    """A server that runs where its users exist and its folders are ours."""

    #: Path of the system -> the folder below ours that is there instead.
    places = {}

    def command(self):
        """Give its command line."""

    def start(self):
        places = {"/etc/passwd": self._with_users("passwd", "{0}:x:{1}:{1}::/nonexistent:/bin/false")}
        places |= {"/etc/group": self._with_users("group", "{0}:x:{1}:")}
        # Nobody asks a DNS for the names of clients.
        (self.folder / "resolv.conf").write_text("lookup file\nnameserver 127.0.0.1\n")
        places |= {"/etc/resolv.conf": self.folder / "resolv.conf"}
        places |= {place: self.folder / name for place, name in self.places.items()}
        mounts = "".join(f"mount --bind {ours} {place} && " for place, ours in places.items())
        words = ["unshare", "--mount", "sh", "-c", f"{mounts}exec {self.command()}"]
        with (self.folder / "output").open("wb") as output:
            self._process = subprocess.Popen(words, stdout=output, stderr=output)
        super().start()

    def stop(self):
        self._process.terminate()
        self._process.wait(20)

    def _with_users(self, name, line):
        text = Path("/etc", name).read_text()
        made = self.folder / name
        made.write_text(text + "".join(line.format(*user) + "\n" for user in USERS.items()))
        return made


class Exim(Unpacked):
    def prepare(self):
        (self.folder / "spool").mkdir()
        os.chown(self.folder / "spool", *[USERS["Debian-exim"]] * 2)
        (self.folder / "exim.conf").write_text(EXIM_CONF.format(folder=self.folder, port=self.port))

    def command(self):
        libraries = f"LD_LIBRARY_PATH={EXIM}/usr/lib/x86_64-linux-gnu"
        return f"env {libraries} {EXIM}/usr/sbin/exim4 -bdf -C {self.folder}/exim.conf"

    def senders(self):
        found = [path.read_bytes() for path in (self.folder / "spool" / "input").rglob("*-H")]
        return [one.split(b"\n")[2].strip(b"<>").decode() for one in found]


class OpenSmtpd(Unpacked):
    chunking = pipelining = False
    places = {"/var/spool": "spool", "/var/lib": "lib", "/run": "run"}

    def prepare(self):
        for name in ("spool/smtpd", "lib/opensmtpd/empty", "run"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "spool" / "smtpd").chmod(0o711)
        (self.folder / "smtpd.conf").write_text(OPENSMTPD_CONF.format(port=self.port))

    def command(self):
        return f"{OPENSMTPD}/usr/sbin/smtpd -d -f {self.folder}/smtpd.conf -P mta"

    def senders(self):
        # One folder a message, with a file an envelope.
        folders = {path.parent for path in (self.folder / "spool/smtpd/queue").rglob("message")}
        envelopes = [next(path for path in folder.iterdir() if path.name != "message") for folder in folders]
        return [re.search(r"^sender: (.*)$", one.read_text(), re.MULTILINE)[1] for one in envelopes]
