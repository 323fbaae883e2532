"""What the shell's completion offers."""

import shutil
import subprocess

import pytest

from deepcluster.cli import app


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("deepcluster fi", "fit"),
        ("deepcluster fit --tim", "--time-limit"),
        ("deepcluster fit pho", ""),  # nothing of ours, so bash completes paths
        ("deepcluster predict runs/a pho", ""),
        ("deepcluster fit photos -o ru", ""),
        ("deepcluster fit photos --recipe v2-", "v2-400-2x224 v2-800"),
        ("deepcluster fit photos --recipe mine", ""),  # a .toml file
        ("deepcluster fit photos --backbone pho", "photos photos-ssl photos-small"),
        ("deepcluster fit photos --labels f", "folders"),
        ("deepcluster fit photos --device c", "cpu cuda"),
        ("deepcluster export run --outliers k", "keep"),
    ],
)
def test_bash(typed, offered):
    script = app.generate_completion(shell="bash")
    assert "complete -o bashdefault -o default -F _deepcluster deepcluster" in script
    words = typed.split()
    call = f'COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _deepcluster; echo "${{COMPREPLY[*]}}"'
    done = subprocess.run(["bash", "--norc"], input=f"{script}\n{call}\n", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == offered


def test_zsh_and_fish_complete_values_and_paths():
    zsh = app.generate_completion(shell="zsh")
    assert ":recipe:{compadd -- auto classic v1 " in zsh and ":weights:{compadd -- timm none; _files}" in zsh
    assert zsh.count(":_files' \\\n            '*-o") >= 1  # IMAGES
    fish = app.generate_completion(shell="fish")
    assert "-l recipe -r -F -a 'auto classic" in fish and "-l labels -r -F -a 'folders'" in fish
    assert "-l device -x -a 'auto cpu cuda mps'" in fish and "complete -c deepcluster -f\n" not in fish
