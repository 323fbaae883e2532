"""Entry point of the command. It handles signals before the slow imports."""

import gc
import os
import sys

from deepcluster.errors import Stopped
from deepcluster.runtime import signals


def main() -> None:
    """Run the command of the command line and end the process with its exit code."""
    # By default threads of OpenMP (torch's) spin while they wait for another. Beside busy programs they take the
    # core from that thread: 3.6 images a second, not 24. OpenMP reads the variable when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        with signals.stoppable():
            gc.set_threshold(10_000)  # 700 new objects would have Python look for cycles 500 times during the imports
            from deepcluster.commands import cli

            code = cli.main()
            signals.ignore()
    except Stopped as error:
        signals.ignore()
        if os.environ.get("RANK", "0") == "0":  # a signal to torchrun stops all
            print(f"error: {error}", file=sys.stderr)
        code = Stopped.exit_code
    if code == Stopped.exit_code:
        sys.stderr.flush()
        os._exit(code)  # Python would wait for threads whose results nobody needs any more
    gc.freeze()  # else Python looks through all of torch's objects for cycles once more, which takes .4 s
    sys.exit(code)


if __name__ == "__main__":
    main()
