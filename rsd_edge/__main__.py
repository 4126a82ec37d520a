"""`python -m rsd_edge`: the command line, for launchers such as torchrun that start modules."""

from __future__ import annotations

from rsd_edge.cli import main

if __name__ == "__main__":
    main()
