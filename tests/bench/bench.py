"""`make bench`: how fast the gateway takes and delivers mail, beside Postfix on the same machine, as ratios.

W1: one message a connection into a Maildir; W2: many a connection; W3: one a connection, relayed to a sink.
The load generator of both is Postfix's smtp-source, 20 sessions; a round ends when all is in the Maildir or
at the sink. Rounds of the two take turns, each in a fresh Maildir; old mail is moved aside, since deleting
much of it makes later files dear. Absolute figures say little: look at the ratios.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

from servers import NEEDED, Gateway, Postfix, Sink, cpu

SESSIONS = 20
LOCAL, FAR = "box@example.org", "box@relay.test"
REPORT = Path("build/bench.json")
#: After so many seconds no further round begins.
LONGEST = 200.0


@dataclass(frozen=True)
class Case:
    """One workload at one size."""

    name: str
    size: int
    recipient: str
    options: tuple[str, ...] = ()


CASES = (
    Case("W1 1K", 1024, LOCAL),
    Case("W1 10K", 10240, LOCAL),
    Case("W2 1K", 1024, LOCAL, ("-d",)),
    Case("W3 1K", 1024, FAR),
    Case("W3 10K", 10240, FAR),
)


@dataclass(frozen=True)
class Figure:
    """What one round gave: messages a second, taken and all delivered, and milliseconds of CPU a message."""

    accepted: float
    delivered: float
    cpu: float


def main():
    arguments = _arguments()
    os.environ["PATH"] += ":/usr/sbin"  # where Debian has them, and ordinary users do not look
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if missing:
        print(f"skipped: {', '.join(missing)} missing:  apt install postfix")
        return
    if os.geteuid() and not arguments.without_postfix:
        print("Only root can start a Postfix of its own (sudo make bench): the gateway is measured alone.")
        arguments.without_postfix = True
    # A bench that is told to end takes its servers along.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    base = Path(tempfile.mkdtemp(prefix="mailward-bench-", dir=arguments.folder))
    base.chmod(0o755)
    try:
        figures = _measure(base, arguments)
    finally:
        shutil.rmtree(base)
    _show(figures)
    _write(figures, arguments)


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    parser.add_argument("--messages", type=int, default=0, help="messages a round (3000; with --quick 500)")
    parser.add_argument("--rounds", type=int, default=0, help="rounds a case (3; with --quick 1)")
    parser.add_argument(
        "--only", default="", metavar="CASE", help="only cases whose name begins so: W1, 'W3 1K'"
    )
    parser.add_argument("--folder", default="/var/tmp", help="on the disk to be measured")
    parser.add_argument("--without-postfix", action="store_true", help="the gateway alone")
    found = parser.parse_args()
    found.messages = found.messages or (500 if found.quick else 3000)
    found.rounds = found.rounds or (1 if found.quick else 3)
    return found


def _measure(base, arguments):
    """Run all rounds; gives case -> server -> figures."""
    cases = [case for case in CASES if case.name.startswith(arguments.only)]
    with Sink() as sink, Gateway(base / "gateway", sink.port) as gateway:
        if arguments.without_postfix:
            return _rounds(cases, [gateway], sink, arguments)
        with Postfix(base / "postfix", sink.port) as postfix:
            return _rounds(cases, [gateway, postfix], sink, arguments)


def _rounds(cases, servers, sink, arguments):
    figures = {case.name: {server.name: [] for server in servers} for case in cases}
    until = time.monotonic() + LONGEST
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=arguments.rounds * len(cases) * len(servers))
        for server in servers:
            _round(server, sink, Case("warm-up", 1024, LOCAL), 100)
        for number in range(arguments.rounds):
            for case in cases:
                if time.monotonic() > until:
                    return figures
                for server in servers if number % 2 == 0 else reversed(servers):
                    progress.update(task, description=f"{case.name} {server.name}")
                    figures[case.name][server.name].append(_round(server, sink, case, arguments.messages))
                    progress.advance(task)
    return figures


def _round(server, sink, case, messages):
    """Send, wait until all is delivered, and say how long it took."""
    server.fresh()
    count = sink.count if case.recipient == FAR else server.count
    before, used, began = count(), cpu(server.pid), time.monotonic()
    words = ["smtp-source", "-s", SESSIONS, "-m", messages, "-l", case.size, *case.options]
    words += ["-f", "sender@example.com", "-t", case.recipient, f"127.0.0.1:{server.port}"]
    subprocess.run(list(map(str, words)), check=True, timeout=60)
    accepted = time.monotonic() - began
    while count() - before < messages:
        if time.monotonic() - began > 60:
            raise SystemExit(f"{case.name}: {server.name} delivered {count() - before} of {messages}")
        time.sleep(0.02)
    took = time.monotonic() - began
    return Figure(messages / accepted, messages / took, (cpu(server.pid) - used) / messages * 1000)


def _show(figures):
    table = Table("", "server", "delivered/s", "(min-max)", "accepted/s", "CPU ms", "ratio")
    for case, by_server in figures.items():
        ratio = _ratio(by_server)
        for server, found in by_server.items():
            if found:
                rates = [one.delivered for one in found]
                table.add_row(
                    case if server == Gateway.name else "",
                    server,
                    f"{statistics.median(rates):.0f}",
                    f"{min(rates):.0f}-{max(rates):.0f}",
                    f"{statistics.median(one.accepted for one in found):.0f}",
                    f"{statistics.median(one.cpu for one in found):.2f}",
                    f"{ratio:.2f}" if ratio and server == Gateway.name else "",
                )
    Console().print(table)


def _ratio(by_server):
    """Give the gateway's rate as a multiple of Postfix's, or None where either is missing."""
    ours, theirs = by_server.get(Gateway.name), by_server.get(Postfix.name)
    if not (ours and theirs):
        return None
    median = [statistics.median(one.delivered for one in found) for found in (ours, theirs)]
    return round(median[0] / median[1], 3)


def _write(figures, arguments):
    REPORT.parent.mkdir(exist_ok=True)
    report = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "messages": arguments.messages,
        "cases": {
            case: {
                "ratio": _ratio(by_server),
                **{server: [asdict(one) for one in found] for server, found in by_server.items()},
            }
            for case, by_server in figures.items()
        },
    }
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {REPORT}")


if __name__ == "__main__":
    main()
