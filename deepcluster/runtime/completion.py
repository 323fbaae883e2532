"""The scripts by which a shell completes commands, as the parser makes them, with two things put right.

Theirs complete no path in bash where it is not the value of a ``Path``, and where they do, folders get no slash and
names with blanks fall apart; and an option that has usual values takes no other one in zsh and fish.
"""

import re


def with_paths(script: str, shell: str) -> str:
    """The script that completes paths as the shell itself does wherever nothing else fits.

    Args:
        script: As the parser has made it.
        shell: bash, zsh or fish.
    """
    if shell == "bash":  # its own completion of file names, which takes over where the function finds nothing
        script = script.replace('COMPREPLY=( $(compgen -f -- "${cur}") )', "COMPREPLY=()")
        return re.sub(r"^complete -F", "complete -o bashdefault -o default -F", script, flags=re.MULTILINE)
    if shell == "zsh":  # ``(a b)`` are the only values, ``{...}`` is a command
        return re.sub(r":(recipe|weights|labels):\((.*?)\)", r":\1:{compadd -- \2; _files}", script)
    if shell == "fish":
        return re.sub(r"(-l (?:recipe|weights|labels)) -x ", r"\1 -r -F ", script)
    return script
