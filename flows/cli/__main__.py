"""`python -m flows.cli`: the same as `medad`."""

from flows.cli.app import main

main()
