"""The way in: signals are heard before anything is imported that takes time."""

import os
import sys

from deepcluster.errors import Stopped
from deepcluster.runtime.signals import Stop


def main() -> None:
    """Run the command of the command line and end the process with its exit code."""
    stop = Stop()
    try:
        stop.__enter__()  # and no end: until the process has ended a signal must not find Python's own handlers
        from deepcluster import cli

        cli.main()
    except SystemExit as error:
        code = error.code
    except BaseException:
        if not stop.wanted:
            raise
        print(f"error: {stop.reason}", file=sys.stderr)
        code = Stopped.exit_code
    stop.ignore()
    if code == Stopped.exit_code:
        sys.stderr.flush()
        os._exit(Stopped.exit_code)  # Python would wait for threads that are at work on what nobody wants any more
    sys.exit(code)


if __name__ == "__main__":
    main()
