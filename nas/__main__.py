"""`python -m nas` is the command `nas`."""

from nas.commands import main

main()
