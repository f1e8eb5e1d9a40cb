"""`python -m temporallens` is the command `temporallens`."""

from temporallens.cli import main

main()
