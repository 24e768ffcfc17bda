"""Becoming a user is seen to have worked: some numbers tell the kernel to leave everything as it is."""

import os

import pytest

from gateway.partition.privilege import become

UNCHANGED = 2**32 - 1


@pytest.mark.parametrize(("uid", "gid"), [(UNCHANGED, 61002), (61002, UNCHANGED), (UNCHANGED, UNCHANGED)])
def test_who_stays_root_hears_of_it(uid, gid):
    pid = os.fork()
    if not pid:
        code = 1
        try:
            become(uid, gid)
        except OSError:
            code = 7
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
