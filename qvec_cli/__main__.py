"""``python -m qvec_cli``."""

from qvec_cli.cli.app import main

main()
