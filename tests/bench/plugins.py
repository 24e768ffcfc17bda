"""What plugins that say nothing cost: a stage call by itself, and W1 with 20 of them beside W1 without.

Part of `make bench`. Two gateways take turns at the same load, so that only the ratio counts.
"""

import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bench import LOCAL, Case, _round
from servers import NEEDED, OWNER, ROOT, Gateway, Sink

from gateway import Stages
from gateway.testing import Bench, transaction

PLUGINS = 20
CALLS, TRIES = 2000, 15
MESSAGES, ROUNDS = 1500, 5
#: Microseconds of a stage call; and how much slower W1 may be.
MOST_CALL, MOST_SHARE = 2.0, 0.05
ARGUMENTS = {
    "connect": "session",
    "helo": "session, name",
    "mail": "transaction",
    "relay": "transaction, recipient",
    "rcpt": "transaction, recipient",
    "data": "transaction",
    "incoming": "transaction",
    "message": "transaction",
    "rewrite": "recipient",
    "route": "recipient",
    "account": "local_part, domain",
    "outgoing": "delivery",
}
SILENT = "from gateway import Plugin, hookimpl\n\n\nclass Silent(Plugin):\n" + "".join(
    f"    @hookimpl\n    def {name}(self, {arguments}):\n        return None\n\n"
    for name, arguments in ARGUMENTS.items()
)


class WithPlugins(Gateway):
    """The gateway with 20 plugins at every stage of reception and routing."""

    name = f"with {PLUGINS} plugins"

    def __init__(self, base, sink):
        super().__init__(base, sink)
        (base / "plugins").mkdir()
        for number in range(PLUGINS):
            (base / "plugins" / f"silent_{number:02}.py").write_text(SILENT)
        (base / "conf.d" / "plugins.yaml").write_text("plugins: {folders: [plugins]}\n")
        if ROOT:
            for path in (base / "plugins", *(base / "plugins").iterdir()):
                shutil.chown(path, OWNER)


async def stage_call(plugins):
    """Give the microseconds of one call of a stage with so many silent plugins: the best of several tries."""
    with tempfile.TemporaryDirectory() as folder:
        chain = Bench(Path(folder)).chain(**{f"silent_{number:02}": SILENT for number in range(plugins)})
        about, best = transaction(), float("inf")
        for _ in range(TRIES):
            began = time.perf_counter()
            for _ in range(CALLS):
                await chain.ask(Stages.data, about)
            best = min(best, time.perf_counter() - began)
        return best / CALLS * 1e6


def main():
    alone, full = (asyncio.run(stage_call(count)) for count in (0, PLUGINS))
    print(f"a stage call: {alone:.2f} us without plugins, {full:.2f} us with {PLUGINS} that say nothing")
    if full > MOST_CALL:
        print(f"  more than {MOST_CALL:g} us")
    if missing := [program for program in NEEDED if shutil.which(program) is None]:
        print(f"W1 is skipped: {', '.join(missing)} missing:  apt install postfix")
        return
    base = Path(tempfile.mkdtemp(prefix="mailward-bench-", dir="/var/tmp"))
    base.chmod(0o755)
    try:
        spent = _compare(base)
    finally:
        shutil.rmtree(base)
    # The best round of each: what else the machine does can only add.
    bare, laden = map(min, spent)
    print(f"W1: {bare:.3f} ms of CPU a message, {laden:.3f} ms with them: {laden / bare - 1:+.1%}")
    if laden > bare * (1 + MOST_SHARE):
        print(f"  more than {MOST_SHARE:.0%}")


def _compare(base):
    """Give the CPU of each round, of both gateways."""
    case = Case("W1 1K", 1024, LOCAL)
    spent = ([], [])
    with (
        Sink() as sink,
        Gateway(base / "bare", sink.port) as bare,
        WithPlugins(base / "laden", sink.port) as laden,
    ):
        for server in (bare, laden):
            _round(server, sink, case, 200)
        for number in range(ROUNDS):
            pairs = list(zip((bare, laden), spent, strict=True))
            for server, found in pairs if number % 2 == 0 else reversed(pairs):
                found.append(_round(server, sink, case, MESSAGES).cpu)
    return spent


if __name__ == "__main__":
    main()
