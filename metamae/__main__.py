"""``python -m metamae``: the command line."""

from metamae.cli.main import main

raise SystemExit(main())
