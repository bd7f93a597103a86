"""What ends a command early: the user's input (UserError), the run (RunError), or its time."""


class UserError(Exception):
    """Something the user gave cannot be used: where, what was found, what to do."""


class ConfigError(UserError):
    """A configuration file, a `--set` or an option is wrong."""


class StaleStep(ConfigError):
    """A step of a run directory was made with or from something else, or its files are gone."""


class DataError(UserError):
    """An image folder or dataset cannot be used."""


class FormatError(UserError):
    """A distilled file cannot be read."""


class CheckpointError(UserError):
    """A weights file cannot be used."""


class RunError(Exception):
    """The run cannot go on (divergence, disk or memory full); what is finished stays usable."""


class DiskFull(RunError):
    """There is no room left to write."""


class OutOfTime(Exception):
    """The time that was given is over; what is done is safe, and the same command goes on."""
