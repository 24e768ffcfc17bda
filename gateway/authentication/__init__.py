"""The door of logins: the file of them, and programs that know whose password it is. Lazy, as others are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import lazy

if TYPE_CHECKING:
    from gateway.authentication import passwords as passwords
    from gateway.authentication.checkpassword import Checkpassword as Checkpassword
    from gateway.authentication.checkpassword import pam_program as pam_program
    from gateway.authentication.pam import PAM_SERVICE as PAM_SERVICE

#: name -> the module it lives in; "" is a module that is public itself.
_HOME = {
    "Checkpassword": "checkpassword",
    "PAM_SERVICE": "pam",
    "pam_program": "checkpassword",
    "passwords": "",
}

__all__ = list(_HOME)
__getattr__ = lazy(__name__, _HOME)
