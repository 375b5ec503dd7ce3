"""`python -m tokenmill.cli`: the command without its console script, as child processes are started."""

from tokenmill.cli.group import main

main(prog_name="tokenmill")
