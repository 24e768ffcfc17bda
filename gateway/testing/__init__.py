"""The tool kit for tests of plugins and of the gateway itself."""
