"""The main door."""
