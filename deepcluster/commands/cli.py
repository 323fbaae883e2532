"""The command `deepcluster`: its verbs, and the exit code of each call.

A command imports torch only after all checks that need none: arguments, paths, runs, the number of images. Help and
checks of arguments need no numpy either.
"""

import json
import sys
import warnings
from contextlib import suppress

import cyclopts
from cyclopts import App, Group, Parameter

import deepcluster
from deepcluster.commands.machine import doctor, fetch, recipes
from deepcluster.commands.make import apply, ask, fit, promote, recut, report, teach, update
from deepcluster.commands.session import check_arguments, explained, report_error, typed
from deepcluster.commands.use import embed, evaluate, export, predict, similar
from deepcluster.errors import DeepClusterWarning, Stopped
from deepcluster.runtime import console, log, signals
from deepcluster.runtime.console import complain
from deepcluster.runtime.machine import is_main_rank

app = App(
    name="deepcluster",
    version=deepcluster.__version__,
    help="From a folder of unlabelled images to clusters, features and a model that places new images.",
    help_format="plaintext",
    # A switch that is off shows nothing.
    default_parameter=Parameter(
        negative=(), show_default=lambda value: None if value is None or value is False else str(value)
    ),
    group_arguments=Group("Arguments", sort_key=0),
    group_parameters=Group("Parameters", sort_key=1),
    suppress_keyboard_interrupt=False,
)
app.register_install_completion_command(help="Let the shell complete commands and options (bash, zsh, fish).")
of_runs = (predict, embed, recut, apply, ask, teach, update, promote, report, similar, evaluate, export)
for command in (fit, *of_runs, recipes, fetch, doctor):
    # The example at the end of its docstring ends the help, too.
    app.command(command, help_epilogue="Example: " + str(command.__doc__).rpartition("Example:")[2].strip())
# The help lists these in the order in which people need them, and then the others by name.
for number, verb in enumerate(("fit", "report", "export", "update", "predict")):
    app[verb].sort_key = number


def run_command(arguments: list[str]) -> int:
    """Run one command, and return the exit code (docs/usage.md)."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    # One rank warns.
    warnings.filterwarnings("always" if is_main_rank() else "ignore", category=DeepClusterWarning)
    warnings.showwarning = lambda message, *_, **__: complain(f"warning: {message}")
    try:
        with signals.stoppable(), log.logged(typed(arguments)):
            check_arguments(arguments)
            app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
            if unwritten := console.flush_streams():
                raise unwritten
    except Stopped as error:
        code, text = Stopped.exit_code, str(error)
        if is_main_rank():  # a signal to torchrun stops all
            complain(f"error: {text}")
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        return 0
    except Exception as error:
        if debug and not isinstance(error, cyclopts.CycloptsError):
            raise
        code, text = explained(error)
        report_error(text)
    else:
        return 0
    if "--json" in arguments and is_main_rank():
        with suppress(OSError):  # standard output itself may have failed
            print(json.dumps({"error": text, "code": code}))
    return code


def main() -> int:
    """Run the command of the command line, and return its exit code."""
    console.set_up_streams()
    app.console = console.PipeConsole()  # after set_up_streams, which checks the COLUMNS that give it its width
    code = run_command(sys.argv[1:])
    console.flush_streams()
    return code
