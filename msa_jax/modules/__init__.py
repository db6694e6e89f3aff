"""Linen modules: they own the parameters and call `core`."""
