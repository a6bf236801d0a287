"""`python -m flows.cli`: the same as `medad`."""

from flows.cli.start import main

main()
