"""What ImageBind costs here: time and memory of each tower, with random weights.

    python benchmarks/imagebind.py

Times do not depend on the weights. Each tower and type is a process of its own, so that memory is
its own. Prints one Markdown table: medians of several runs.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import numpy as np

INPUTS = {
    "text": ("query of 8 tokens", (1, 8), 1.0),
    "text 32": ("text of 8 tokens, in batches of 32", (32, 8), 32.0),
    "text 77": ("query of 77 tokens", (1, 77), 1.0),
    "vision": ("picture, or one of the clips of a film", (1, 1, 3, 224, 224), 1.0),
    "vision 8": ("the same, in batches of 8", (8, 1, 3, 224, 224), 8.0),
    "audio": ("second of sound (3 clips of 2 s in 10 s)", (1, 3, 1, 128, 204), 10.0),
}
RUNS = 3


def main() -> None:
    """Run every case, print the table."""
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], sys.argv[2])))
        return
    print("| what | type | ms | peak memory, GB |")
    print("|---|---|---:|---:|")
    for name, (what, _, _) in INPUTS.items():
        for kind in ("float32", "bfloat16"):
            done = subprocess.run(
                [sys.executable, __file__, name, kind], stdout=subprocess.PIPE, check=True
            )
            found = json.loads(done.stdout)
            print(f"| {what} | {kind} | {found['ms']:.0f} | {found['gb']:.1f} |", flush=True)


def measure(name: str, kind: str) -> dict[str, float]:
    """One tower: milliseconds a unit, and the most memory that this process had."""
    import torch

    from cart_qdrant.embedders.imagebind.config import ImageBindConfig
    from cart_qdrant.embedders.imagebind.model import ImageBind

    _, shape, units = INPUTS[name]
    tower, dtype = name.split()[0], getattr(torch, kind)
    with torch.device("meta"):
        model = ImageBind(ImageBindConfig(), [tower]).to(dtype)
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    for tensor in model.state_dict().values():
        tensor.normal_(std=0.02)
    if tower == "text":
        model.modality_preprocessors["text"].get_buffer("mask").fill_(-torch.inf).triu_(1)
        x = torch.randint(1, 49_000, shape)
    else:
        x = torch.randn(shape, dtype=dtype)
    times = []
    with torch.inference_mode():
        for _ in range(RUNS + 1):
            begin = time.perf_counter()
            model({tower: x})
            times.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"ms": 1e3 * float(np.median(times[1:])) / units, "gb": peak}


if __name__ == "__main__":
    main()
