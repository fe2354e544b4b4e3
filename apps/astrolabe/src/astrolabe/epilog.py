"""The end of a command's help text."""


def examples(*commands: str) -> str:
    """List commands as examples; the first character keeps their lines as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)
