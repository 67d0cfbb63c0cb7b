"""Run the command line: `edje-qdrant`, or `python -m edje_qdrant`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; Ctrl-C while its modules are loaded is one line, too."""
    try:
        from edje_qdrant.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
