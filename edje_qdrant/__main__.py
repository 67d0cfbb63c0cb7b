"""Run the command line with `python -m edje_qdrant`."""

from __future__ import annotations

from edje_qdrant.cli.app import main

if __name__ == "__main__":
    main()
