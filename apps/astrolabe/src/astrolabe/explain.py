"""Which errors are the user's to mend, told in one line; all others are bugs."""

import errno

from astrolabe.errors import ConfigError, InvariantError, MissingError

ERROR_MODULES = ("astrolabe_rollout.errors", "astrolabe_rewards.errors", "astrolabe_eval.errors")

WAYS_OUT = {
    errno.ENOSPC: "Free some space, or choose another --out; what was saved is intact.",
    errno.EROFS: "Choose another --out.",
    errno.EACCES: "Choose another --out, or change the permissions.",
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
