"""The command `tokenmill`. Knows the commands' names; loads a command's code only when that command is used.

Further commands come from the entry-point group `tokenmill.commands`: a package adds one by naming a click command
there. It is loaded when it is invoked, so a broken one breaks nothing else, and this package never imports the worker.
"""

from tokenmill.cli.group import main

__all__ = ["main"]
