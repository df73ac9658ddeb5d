"""Start-up time of the command, compared with the unavoidable minimum.

    python -m benchmarks.startup [--rounds 11]

Target: ``datxai --help`` takes at most 1.5 times as long as ``python -c "import hydra"``.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

COMMANDS = {
    "python": [sys.executable, "-c", ""],
    "import hydra": [sys.executable, "-c", "import hydra"],
    "import torch": [sys.executable, "-c", "import torch"],
    "datxai --help": [Path(sys.executable).with_name("datxai"), "--help"],
    "datxai --cfg job": [Path(sys.executable).with_name("datxai"), "--cfg", "job"],
}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args(words).rounds
    seconds = {name: [] for name in COMMANDS}
    for _ in range(rounds):  # interleaved: slowdowns affect all equally
        for name, command in COMMANDS.items():
            begin = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            seconds[name].append(time.perf_counter() - begin)
    reference = statistics.median(seconds["import hydra"])
    print(f"{'':18}  median s  of import hydra")
    for name, values in seconds.items():
        print(f"{name:18}  {statistics.median(values):8.3f}  {statistics.median(values) / reference:.2f}")


if __name__ == "__main__":
    main()
