"""The door of the accounts of a machine: users/assign, passwd, what is configured. Lazy, as others are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import lazy

if TYPE_CHECKING:
    from gateway.accounts.assign import AssignError as AssignError
    from gateway.accounts.assign import Assignments as Assignments
    from gateway.accounts.assign import parse_assign as parse_assign
    from gateway.accounts.passwd import find_user as find_user
    from gateway.accounts.settings import Home as Home
    from gateway.accounts.settings import ProgramLimits as ProgramLimits
    from gateway.accounts.settings import Settings as Settings

#: name -> the module it lives in.
_HOME = {
    "AssignError": "assign",
    "Assignments": "assign",
    "Home": "settings",
    "ProgramLimits": "settings",
    "Settings": "settings",
    "find_user": "passwd",
    "parse_assign": "assign",
}

__all__ = list(_HOME)
__getattr__ = lazy(__name__, _HOME)
