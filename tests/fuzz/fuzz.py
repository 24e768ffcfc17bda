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
        import atheris
    except ImportError:
        by_chance(name, float(seconds))
        return
    with redirect_stderr(io.StringIO()), atheris.instrument_imports(include=["gateway"]):
        from targets import PARTS, TARGETS
    for function in (one for module in PARTS for one in vars(module).values() if isfunction(one)):
        atheris.instrument_func(function)
    limits = [
        f"-max_total_time={float(seconds):.0f}",
        f"-max_len={LONGEST}",
        "-timeout=10",
        "-rss_limit_mb=1024",
    ]
    quiet = ["-verbosity=0", "-print_final_stats=1", f"-artifact_prefix={folder}/../{name}-"]
    atheris.Setup([name, *limits, *quiet, folder, str(HERE / "corpus" / name)], TARGETS[name])
    atheris.Fuzz()


def by_chance(name, seconds):
    """Without atheris: inputs made of the corpus, others every time."""
    from targets import TARGETS
    from test_fuzz import changed, corpus

    chance, seeds, end, count = random.Random(), [*corpus(name), b""], time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data, count = changed(chance, seeds), count + 1
        try:
            TARGETS[name](data)
        except Exception:
            print(f"the input: {data!r}")
            raise
    print(f"{count} inputs; atheris is not installed")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
    else:
        sys.exit(main(sys.argv[1:]))
