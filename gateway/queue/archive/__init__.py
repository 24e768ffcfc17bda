"""Backups that any store can read on any machine: their form, writing, reading, loading, and their fates."""
