"""The error this package raises for its own objects."""


class SnapshotError(KeyError):
    """A snapshot that does not exist, or saved snapshots that do not fit the network."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which puts quotes around a whole sentence.
        return str(self.args[0])
