"""`python -m volgate.cli`."""

from volgate.cli import main

main()
