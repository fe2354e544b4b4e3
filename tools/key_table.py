"""Put the table of keys into the top README: ``python tools/key_table.py [--check]``.

The table is made from the four ``keys.py`` (`astrolabe.keys_table`). With ``--check`` nothing is
written; the exit code is 1 if the README is stale.
"""

import sys
from pathlib import Path

from astrolabe.keys_table import put_table

README = Path(__file__).parents[1] / "README.md"


def main() -> int:
    """Write or check the table; return the exit code."""
    present = README.read_text(encoding="utf-8")
    wanted = put_table(present)
    if present == wanted:
        return 0
    if "--check" in sys.argv[1:]:
        print(f"{README.name} has an old table of keys. Run: uv run python tools/key_table.py")
        return 1
    README.write_text(wanted, encoding="utf-8")
    print(f"{README.name}: table of keys brought up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
