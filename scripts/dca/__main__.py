"""`python -m dca`."""

from dca.cli import main

main()
