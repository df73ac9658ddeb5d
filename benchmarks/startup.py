"""How long the command takes to answer, against what cannot be avoided.

    python -m benchmarks.startup

Target: ``datxai --help`` takes at most 1.5 times as long as ``python -c "import hydra"``.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 11
COMMANDS = {
    "python": [sys.executable, "-c", ""],
    "import hydra": [sys.executable, "-c", "import hydra"],
    "import torch": [sys.executable, "-c", "import torch"],
    "datxai --help": [Path(sys.executable).with_name("datxai"), "--help"],
    "datxai --cfg job": [Path(sys.executable).with_name("datxai"), "--cfg", "job"],
}


def main() -> None:
    seconds = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):  # interleaved: a slow moment hits all alike
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
