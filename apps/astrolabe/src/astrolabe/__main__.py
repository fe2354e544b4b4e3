"""``python -m astrolabe`` is the command ``astrolabe``."""

from astrolabe.cli import main

main()
