"""torch and tensordict, which only models and scorers need: tables and statistics do without."""

import re
from importlib.metadata import requires
from importlib.util import find_spec


def require_torch(asker: str) -> None:
    """Refuse to go on without torch and tensordict.

    Raises:
        ModuleNotFoundError: If one of them is not installed.
    """
    absent = [name for name in ("torch", "tensordict") if find_spec(name) is None]
    if absent:
        raise ModuleNotFoundError(
            f"{asker} needs {' and '.join(absent)}. Install it: {install_line()}.", name=absent[0]
        )


def install_line() -> str:
    """Return the command that installs both, wherever this package came from.

    Example:
        >>> install_line().startswith("pip install 'tensordict>=")
        True
    """
    marked = re.compile(r"(.+?)\s*;.*extra == ['\"]torch['\"]")
    found = [match[1] for line in requires("astrolabe-eval") or () if (match := marked.match(line))]
    return f"pip install {' '.join(map(repr, found))}"
