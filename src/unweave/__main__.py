"""`python -m unweave`: the command line where no script was installed."""

from unweave.cli import main

main()
