"""The end of a command's help text."""


def examples(*commands: str) -> str:
    """List commands as examples."""
    return lines("Examples:", *commands)


def lines(title: str, *rows: str) -> str:
    """A title with rows below; the first character keeps their lines as they are."""
    return f"\b\n{title}\n" + "\n".join(f"  {row}" for row in rows)
