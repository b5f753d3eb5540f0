"""``python -m confreg.cli``."""

from confreg.cli.main import main

main()
