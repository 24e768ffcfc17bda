"""The fixtures of the tool kit, as a plugin's author has them."""

from gateway.testing.fixtures import mailward_clock, mailward_dns, mailward_gateway, mailward_plugin

__all__ = ["mailward_clock", "mailward_dns", "mailward_gateway", "mailward_plugin"]
