"""How a command ends with an error."""

import sys
from typing import NoReturn


def fail(message: str, status: int = 2) -> NoReturn:
    """Print an error and exit."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
