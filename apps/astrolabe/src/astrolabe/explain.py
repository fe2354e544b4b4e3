"""Which errors are the user's to mend, told in one line; all others are bugs."""

import errno

from astrolabe.errors import ConfigError, InvariantError, MissingError

ERROR_MODULES = ("astrolabe_rollout.errors", "astrolabe_rewards.errors", "astrolabe_eval.errors")

_FULL = "Free some space, or write to another place; what was saved is intact."
WAYS_OUT = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EROFS: "Write to another place.",
    errno.EACCES: "Change the permissions, or name another path.",
    errno.EISDIR: "It is a folder: give the name of a file.",
    errno.ENOTDIR: "It is a file: write to another place.",
    errno.ENAMETOOLONG: "Give a shorter name.",
    errno.EIO: "Look whether the disk is sound, or write to another place.",
}


def explain(error: BaseException) -> str | None:
    """Return a mistake of the user in one line; None for what is a bug."""
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}. {WAYS_OUT.get(error.errno or 0, 'Check the path.')}"
    if isinstance(error, MissingError):
        return str(error)
    known = isinstance(error, (ConfigError, InvariantError, OSError)) or type(error) is LookupError
    if not known and type(error).__module__ not in ERROR_MODULES:
        return None
    return " ".join(str(error.args[0] if error.args else error).split())
