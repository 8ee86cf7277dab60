"""``python -m metamae``: the command line."""

from metamae.cli import main

raise SystemExit(main())
