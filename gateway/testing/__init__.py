"""The tool kit for tests of plugins and of the gateway itself."""

from gateway.testing.build import Bench as Bench
from gateway.testing.build import session as session
from gateway.testing.build import transaction as transaction
