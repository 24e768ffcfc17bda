"""The tool kit for tests of plugins and of the gateway itself. `docs/testing.md` shows it at work."""

from gateway.testing.build import Bench as Bench
from gateway.testing.build import delivery as delivery
from gateway.testing.build import entry as entry
from gateway.testing.build import message as message
from gateway.testing.build import read_message as read_message
from gateway.testing.build import recipient as recipient
from gateway.testing.build import session as session
from gateway.testing.build import transaction as transaction
from gateway.testing.contract import contract as contract
from gateway.testing.fakes import FakeClock as FakeClock
from gateway.testing.fakes import FakeDns as FakeDns
from gateway.testing.replay import Heard as Heard
from gateway.testing.replay import Letter as Letter
from gateway.testing.replay import replay as replay
