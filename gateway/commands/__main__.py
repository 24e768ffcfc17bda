"""`python -m gateway.commands` is `mailward`, where no script is installed."""

from gateway.commands import main

main()
