"""`tokenmill top`: the fleet in a terminal."""

from tokenmill.cli.top.command import top

__all__ = ["top"]
