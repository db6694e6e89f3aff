"""Errors that a user can mend; each message is one sentence that says what to do."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the field and what to do."""


class RecordError(ValueError):
    """A record that cannot be used; the message names the file, the line and the field."""
