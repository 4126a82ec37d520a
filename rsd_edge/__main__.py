"""What the script `rsd-edge` calls, and `python -m rsd_edge`, for launchers such as torchrun that start modules.

Nothing is imported before Ctrl-C is provided for.
"""

from __future__ import annotations

import sys

_INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit, with a line instead of a traceback if Ctrl-C comes while it is loaded."""
    try:
        from rsd_edge.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(_INTERRUPTED)
    run()


if __name__ == "__main__":
    main()
