import faulthandler
import sys
import tempfile

import pytest

from gateway.workers.watchdog import PATIENCE, Suspicion, culprit

PLUGINS = {"sleepy": "/etc/mailward/plugins/sleepy.py", "big": "/usr/share/mailward/big/__init__.py"}
IDLE = """\
Thread 0x00007f01 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 320 in wait
  File "/srv/gateway/journal/writer.py", line 180 in _run

"""
FROZEN = """\
Current thread 0x00007f00 (most recent call first):
  File "/usr/lib/python3.11/re/__init__.py", line 166 in match
  File "{}", line 7 in mail
  File "/srv/gateway/chain.py", line 190 in _call
"""


def test_the_innermost_frame_of_a_plugin_names_it():
    assert culprit(IDLE + FROZEN.format("/etc/mailward/plugins/sleepy.py"), PLUGINS) == "sleepy"
    assert culprit(IDLE + FROZEN.format("/usr/share/mailward/big/parts.py"), PLUGINS) == "big"
    both = FROZEN.format(
        '/usr/share/mailward/big/parts.py", line 1 in x\n  File "/etc/mailward/plugins/sleepy.py'
    )
    assert culprit(both, PLUGINS) == "big"


def test_the_thread_of_the_loop_counts_before_others():
    threads = FROZEN.format("/usr/share/mailward/big/parts.py").replace("Current thread", "Thread")
    assert culprit(threads + "\n" + FROZEN.format("/etc/mailward/plugins/sleepy.py"), PLUGINS) == "sleepy"
    assert culprit(threads, PLUGINS) == "big"


@pytest.mark.parametrize("stacks", ["", IDLE, "nonsense", FROZEN.format("/etc/mailward/plugins/sleepy.pyc")])
def test_without_a_plugin_in_the_stacks_nobody_is_named(stacks):
    assert culprit(stacks, PLUGINS) == ""


def test_real_stacks_are_read():
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        assert culprit(file.read(), {"me": __file__, "pytest": sys.modules["pytest"].__file__}) == "me"


def test_silence_of_one_worker_is_frozen():
    suspicion = Suspicion(0.0)
    for tick in range(1, 30):
        now = tick * 0.5
        suspicion.look(now)
        assert suspicion.frozen(0.0, now) == (now > PATIENCE)
        assert not suspicion.frozen(now - 1.0, now)


def test_silence_while_the_watchdog_itself_stood_still_is_none():
    suspicion = Suspicion(0.0)
    suspicion.look(0.5)
    suspicion.look(3600.0)
    assert not suspicion.frozen(0.5, 3600.0)
    for tick in range(1, 20):
        now = 3600 + tick * 0.5
        suspicion.look(now)
        assert suspicion.frozen(0.5, now) == (tick * 0.5 > PATIENCE)
