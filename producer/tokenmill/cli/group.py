"""The group of all commands, ours by module, others' by entry point, each loaded when used. Knows none of them."""

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

import click

from tokenmill.cli.exits import Exit, errors_as_exits, fail

COMMANDS_GROUP = "tokenmill.commands"

# command -> (module, its one line in `tokenmill --help`, so that listing the commands loads none of them)
OWN_COMMANDS = {
    "bulk": ("tokenmill.cli.bulk", "Run a model over a dataset; run it again to do only what is missing."),
    "dead": ("tokenmill.cli.dead", "Look at dead letters, ask them again, or throw them away."),
    "demo": ("tokenmill.cli.demo", "See all of it work, on this machine, in a minute."),
    "doctor": ("tokenmill.cli.doctor", "Check the server, the workers, the model and the device."),
    "gateway": ("tokenmill.cli.gateway", "Serve OpenAI's HTTP interface in front of a queue."),
    "keys": ("tokenmill.cli.keys", "Make, list and revoke the gateway's API keys."),
    "queue": ("tokenmill.cli.queue", "Show what waits, what runs, and who works."),
    "top": ("tokenmill.cli.top", "Watch the fleet in a terminal: queue, batch, workers, runs, errors."),
    "submit": ("tokenmill.cli.submit", "Send one prompt and print the answer."),
}
# What we ship ourselves as plugins: their line in the help, and the extra that brings what they need.
KNOWN_PLUGINS = {
    "worker": ("Answer prompts from a queue with a model on this machine.", "worker"),
    "tune": ("Measure which settings a model wants on this machine.", "worker"),
}


class CommandGroup(click.Group):
    """`get_command` loads one command; nothing else loads any."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*OWN_COMMANDS, *_plugins()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in OWN_COMMANDS:
            command = getattr(import_module(OWN_COMMANDS[cmd_name][0]), cmd_name)
        elif (plugin := _plugins().get(cmd_name)) is not None:
            command = _load(plugin)
        else:
            return None
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _one_line(name)) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> object:
        with errors_as_exits():
            return super().invoke(ctx)


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=COMMANDS_GROUP) if point.name not in OWN_COMMANDS}


def _package(plugin: EntryPoint) -> str:
    return plugin.module.partition(".")[0]


def _is_ours(plugin: EntryPoint) -> bool:
    return plugin.name in KNOWN_PLUGINS and _package(plugin) == "tokenmill_worker"


def _one_line(name: str) -> str:
    if name in OWN_COMMANDS:
        return OWN_COMMANDS[name][1]
    plugin = _plugins()[name]
    return KNOWN_PLUGINS[name][0] if _is_ours(plugin) else f"From {_package(plugin)}."


def _load(plugin: EntryPoint) -> object:
    """The plugin's object; a plugin that cannot be loaded ends this command, with the reason, and no other."""
    try:
        return plugin.load()
    except Exception as error:  # foreign code: whatever it raises must not look like our crash
        fail(f"the command {plugin.name!r} cannot be used: {_reason(plugin, error)}", Exit.USAGE)


def _reason(plugin: EntryPoint, error: Exception) -> str:
    package = _package(plugin)
    missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    if missing and missing.partition(".")[0] != package:
        extra = KNOWN_PLUGINS[plugin.name][1] if _is_ours(plugin) else ""
        return f"it needs {missing}: pip install " + (f"'tokenmill[{extra}]'" if extra else missing)
    return f"{plugin.value} raises {type(error).__name__}: {error}"


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tokenmill")
def main() -> None:
    """Prompts go onto Redis streams; a continuous batch answers them.

    \b
    tokenmill demo                        see it work, on this machine
    tokenmill worker --redis URL          answer prompts from a queue
    tokenmill submit "Why is the sky blue?" --stream
    tokenmill bulk run rows.jsonl --column question --out done.jsonl --local
    """
