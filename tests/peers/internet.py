"""A small internet in a network namespace: zones signed and plain, a validating resolver, web and mail hosts.

Knot serves and signs the zones, Unbound validates, Postfix takes the mail. Every address of 198.51.100.0/24
is there without being an interface's, so a gateway in the namespace does not take the mail hosts for itself.
"""

import hashlib
import subprocess
import textwrap

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from peer import eventually, program
from test_postfix import MASTER, Postfix

DNS, WEB, MAIL = "198.51.100.53", "198.51.100.80", "198.51.100.25"
#: A TLSA record that fits no certificate, and an MTA-STS policy for the hosts that it is given.
WRONG = "TLSA 3 1 1 " + "0" * 64
ENFORCE = """\
    version: STSv1
    mode: enforce
    mx: {}
    max_age: 86400
"""
_UP = """\
ip link set lo up && ip route add local 198.51.100.0/24 dev lo && mount --bind {0} /etc/resolv.conf
echo up
exec cat
"""
#: Serves the policy of each domain over HTTPS; the only thing here that is no real server.
_WEB = """\
import ssl, sys, http.server
folder, address = sys.argv[1:]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.headers["Host"].removeprefix("mta-sts.")
        try:
            body = open(f"{folder}/{name}.txt", "rb").read()
        except OSError:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        self.wfile.write(body)
server = http.server.ThreadingHTTPServer((address, 443), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"{folder}/web.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


class Internet:
    """Start it, `publish` zones, and run programs `within` it."""

    def __init__(self, folder, stack):
        self.folder, self._stack = folder, stack
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        self._holder = subprocess.Popen(
            ["unshare", "-n", "-m", "sh", "-c", _UP.format(folder / "resolv.conf")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        stack.callback(self._end, self._holder)
        assert self._holder.stdout.readline() == b"up\n"
        self.within = ["nsenter", "-t", str(self._holder.pid), "-n", "-m"]

    def run(self, *command, **more):
        """Run a command to its end."""
        return subprocess.run(
            [*self.within, *command], check=True, capture_output=True, text=True, timeout=60, **more
        ).stdout

    def start(self, *command):
        """Start a program that runs until the end."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen([*self.within, *command], stdout=log, stderr=log)
        self._stack.callback(self._end, process)

    def publish(self, signed, plain, bogus):
        """Serve zones: name -> records; of the bogus ones the resolver knows another key."""
        for name, records in {**signed, **plain, **bogus}.items():
            head = f"$ORIGIN {name}.\n$TTL 60\n@ SOA ns root 1 60 60 60 60\n@ NS ns\nns A {DNS}\n"
            (self.folder / f"{name}.zone").write_text(head + textwrap.dedent(records))
        zones = "".join(
            f"  - domain: {name}\n    file: {self.folder}/{name}.zone\n    zonefile-sync: -1\n"
            + ("" if name in plain else "    dnssec-signing: on\n")
            for name in (*signed, *plain, *bogus)
        )
        (self.folder / "knot.conf").write_text(
            f"server:\n  listen: {DNS}@53\n  rundir: {self.folder}\n  user: root:root\n"
            f"database:\n  storage: {self.folder}/knot\n"
            f"log:\n  - target: stderr\n    any: info\nzone:\n{zones}"
        )
        (self.folder / "knot").mkdir()
        self.start(program("knotd"), "-c", self.folder / "knot.conf")
        anchors = [eventually(lambda name=name: self._key(name)) for name in signed]
        wrong = [f"{name}. DS 1 13 2 {'0' * 64}" for name in bogus]
        self._resolve([*signed, *plain, *bogus], [*anchors, *wrong])

    def _key(self, zone):
        """Give the DS record of a zone once it is signed."""
        found = subprocess.run(
            [*self.within, program("keymgr"), "-c", self.folder / "knot.conf", zone, "ds"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        return next((line for line in found.splitlines() if " DS " in line and " 2 " in line), None)

    def _resolve(self, zones, anchors):
        stubs = "".join(f'stub-zone:\n  name: "{name}"\n  stub-addr: {DNS}\n' for name in zones)
        trusted = "".join(f'  trust-anchor: "{anchor}"\n' for anchor in anchors)
        (self.folder / "unbound.conf").write_text(
            "server:\n  interface: 127.0.0.1\n  access-control: 127.0.0.0/8 allow\n  do-ip6: no\n"
            f'  username: ""\n  chroot: ""\n  directory: "{self.folder}"\n  pidfile: ""\n  use-syslog: no\n'
            f"  do-daemonize: no\n{trusted}remote-control:\n  control-enable: no\n{stubs}"
        )
        self.start(program("unbound"), "-d", "-c", self.folder / "unbound.conf")
        eventually(lambda: self.listens("127.0.0.1", 53))

    def web(self, **policies):
        """Serve policies, by domain with `_` for dots."""
        domains = [name.replace("_", ".") for name in policies]
        for name, text in zip(domains, policies.values(), strict=True):
            (self.folder / f"{name}.txt").write_text(textwrap.dedent(text))
        leaf = self.authority.issue_cert(*(f"mta-sts.{name}" for name in domains))
        leaf.private_key_and_cert_chain_pem.write_to_path(str(self.folder / "web.pem"))
        self.start("python3", "-c", _WEB, self.folder, WEB)
        eventually(lambda: self.listens(WEB, 443))

    def listens(self, address, port):
        """Say whether somebody serves there."""
        code = f"import socket; socket.create_connection(({address!r}, {port}), 1)"
        return not subprocess.run(
            [*self.within, "python3", "-c", code], capture_output=True, check=False
        ).returncode

    def send(self, port, recipient, *, sender="ann@example.org", options=(), field="X-Test: 1"):
        """Give a mail to a gateway that serves in the namespace."""
        code = (
            "import smtplib, sys; port, sender, recipient, field, *options = sys.argv[1:]\n"
            "with smtplib.SMTP('127.0.0.1', int(port), 'client.example', timeout=20) as client:\n"
            "    content = f'Subject: for {recipient}\\r\\n{field}\\r\\n\\r\\nx\\r\\n'\n"
            "    client.sendmail(sender, [recipient], content, options)"
        )
        self.run("python3", "-c", code, str(port), sender, recipient, field, *options)

    @staticmethod
    def _end(process):
        if process.stdin:
            process.stdin.close()
        else:
            process.terminate()
        process.wait(20)
        if process.stdout:
            process.stdout.close()


class Inside(Postfix):
    """A Postfix in the namespace."""

    address = "127.0.0.1"

    def __init__(self, folder, internet):
        self._internet = internet
        super().__init__(folder, 1, 1)

    def start(self):
        self._run("start")
        eventually(lambda: self._internet.listens(self.address, self.port))

    def _run(self, command):
        self._internet.run(program("postfix"), "-c", self.folder / "config", command)


class MailHost(Inside):
    """A Postfix at MAIL, port 25, with a certificate of the internet's authority for these names."""

    address = MAIL

    def __init__(self, folder, internet, domains, *names, main=""):
        self.leaf = internet.authority.issue_cert(*names)
        super().__init__(folder, internet)
        self.port = 25
        (folder / "key.pem").write_bytes(self.leaf.private_key_pem.bytes())
        chain = [one.bytes() for one in self.leaf.cert_chain_pems] + [internet.authority.cert_pem.bytes()]
        (folder / "certificate.pem").write_bytes(b"".join(chain))
        text = (folder / "config" / "main.cf").read_text()
        kept = [
            line
            for line in text.splitlines()
            if not line.startswith(("inet_interfaces", "smtpd_sender_restrictions", "virtual_mailbox_"))
            and not line.startswith(("smtpd_recipient_restrictions", "smtpd_relay_restrictions", "relayhost"))
        ]
        kept += [
            "inet_interfaces = 127.0.0.1",
            f"virtual_mailbox_domains = {', '.join(domains)}",
            f"virtual_mailbox_base = {folder}/mail",
            "virtual_mailbox_maps = static:all/",
            "smtpd_recipient_restrictions = permit_auth_destination, reject",
            "smtpd_relay_restrictions = permit_auth_destination, reject",
        ]
        (folder / "config" / "main.cf").write_text("\n".join(kept) + f"\n{main}")
        (folder / "config" / "master.cf").write_text(
            MASTER.format(port=25).replace("127.0.0.1:25", f"{MAIL}:25")
        )

    def certificate(self, number=0):
        """Give one of the certificates that it shows, its own first."""
        pems = [*self.leaf.cert_chain_pems, self._internet.authority.cert_pem]
        return x509.load_pem_x509_certificate(pems[number].bytes())


def tlsa(certificate, usage, selector=1):
    """Write a TLSA record of matching type 1 (SHA-256)."""
    data = certificate.public_bytes(Encoding.DER)
    if selector:
        data = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"TLSA {usage} {selector} 1 {hashlib.sha256(data).hexdigest()}"
