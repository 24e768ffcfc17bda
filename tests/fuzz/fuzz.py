"""Fuzzes every target, or those named, for MAILWARD_FUZZ_SECONDS in all; `make fuzz` runs it.

Each target has a process of its own and an equal share of the time. With atheris, coverage leads; what it
finds new is kept in a folder (MAILWARD_FUZZ_FOLDER) and used again the next time. An input that breaks a
promise is printed and written there, and the run ends with 1.
"""

import io
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr
from inspect import isfunction
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
SECONDS = float(os.environ.get("MAILWARD_FUZZ_SECONDS", "600"))
LONGEST = 4096


def main(names):
    """Run each in its turn, and say which have failed."""
    from targets import TARGETS

    names = names or list(TARGETS)
    folder = Path(os.environ.get("MAILWARD_FUZZ_FOLDER", Path(tempfile.gettempdir(), "mailward-fuzz")))
    failed = []
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        print(f"== {name}", flush=True)
        words = [sys.executable, __file__, "--one", name, folder / name, str(SECONDS / len(names))]
        if subprocess.run(words, check=False).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else f"{len(names)} targets, nothing found")
    return bool(failed)


def one(name, folder, seconds):
    """Fuzz one target for that long."""
    logging.disable()
    try:
        targets = instrumented()
    except ImportError:
        by_chance(name, float(seconds))
        return
    led(name, targets, Path(folder), f"-max_total_time={float(seconds):.0f}", "-print_final_stats=1")


def short():
    """Give every target a few inputs, always the same ones; says which have failed."""
    from test_fuzz import MADE, SLOWER

    logging.disable()
    failed, targets = [], instrumented()
    with tempfile.TemporaryDirectory() as folder:
        for name in targets:
            kept = Path(folder, name)
            kept.mkdir()
            # libFuzzer ends its process, and an input that breaks a promise gets past it as an exception.
            child = os.fork()
            if not child:
                try:
                    led(name, targets, kept, f"-runs={SLOWER.get(name, MADE)}", "-seed=1")
                finally:
                    os._exit(1)
            if os.waitpid(child, 0)[1]:
                failed.append(name)
    return f"failed: {', '.join(failed)}" if failed else None


def instrumented():
    """Give the targets, in which what is reached is counted. Raises ImportError where atheris is missing."""
    import atheris

    with redirect_stderr(io.StringIO()), atheris.instrument_imports(include=["gateway"]):
        from targets import PARTS, TARGETS
    for function in (one for module in PARTS for one in vars(module).values() if isfunction(one)):
        atheris.instrument_func(function)
    return TARGETS


def led(name, targets, folder, *options):
    """Fuzz a target, led by coverage; what is new is kept in the folder. Ends the process."""
    import atheris

    limits = [f"-max_len={LONGEST}", "-timeout=10", "-rss_limit_mb=1024"]
    quiet = ["-verbosity=0", f"-artifact_prefix={folder}/../{name}-"]
    words = [name, *options, *limits, *quiet, str(folder), str(HERE / "corpus" / name)]
    atheris.Setup(words, lambda data: told(targets[name], data))
    atheris.Fuzz()


def by_chance(name, seconds):
    """Without atheris: inputs made of the corpus, others every time."""
    from targets import TARGETS
    from test_fuzz import changed, corpus

    chance, seeds, end, count = random.Random(), [*corpus(name), b""], time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data, count = changed(chance, seeds), count + 1
        told(TARGETS[name], data)
    print(f"{count} inputs; atheris is not installed")


def told(target, data):
    """Call a target; an input that breaks a promise is printed."""
    try:
        target(data)
    except Exception:
        print(f"the input: {data!r}", flush=True)
        raise


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
    elif sys.argv[1:2] == ["--short"]:
        sys.exit(short())
    else:
        sys.exit(main(sys.argv[1:]))
