"""The ``metamae`` command; one file per subcommand, :mod:`~metamae.cli.main` joins them."""
