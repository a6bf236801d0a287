"""Tries promises of `hostile.py` with libFuzzer: `python tests/fuzz_bytes.py NAME WORK -runs=N [libFuzzer's options]`.

WORK/NAME keeps the inputs that reached new lines of medad, so a later call begins where this one ended. An input that
breaks a promise, takes longer than -timeout or more memory than -rss_limit_mb ends it and is kept there too. NAME is
one of `hostile.PROMISES`; `all` gives each of them its share of the runs, in processes of their own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["medad_core"]):
    import hostile
    import nibabel as nib

# Weights of megabytes and Parquet files take longest: they get a smaller share.
SHARES = {"decoder": 0.05, "converter": 0.05, "rows": 0.2, "settings": 0.3}


def main(name: str, work: Path, options: list[str]) -> int:
    """Run one promise, or all; gives the exit status, not 0 where one is broken."""
    if name == "all":
        return _all(work, options)
    promise, seeds = hostile.PROMISES[name]
    corpus = work / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    nib.imageglobals.logger.disabled = True
    longest = max(len(seed) for seed in seeds()) + 64
    usual = [f"-artifact_prefix={corpus}-", f"-max_len={longest}", "-timeout=20", "-rss_limit_mb=3000", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *usual, "-print_final_stats=1", *options, str(corpus)], promise)
    atheris.Fuzz()
    return 0


def _all(work: Path, options: list[str]) -> int:
    runs = next((int(option[6:]) for option in options if option.startswith("-runs=")), 1000)
    rest = [option for option in options if not option.startswith("-runs=")]
    whole = sum(SHARES.get(name, 1.0) for name in hostile.PROMISES)
    broken = []
    for name in hostile.PROMISES:
        share = int(runs * SHARES.get(name, 1.0) / whole) + 1
        command = [sys.executable, __file__, name, str(work), f"-runs={share}", *rest]
        print(f"{name}: {share} inputs", flush=True)
        if subprocess.run(command, check=False).returncode:
            broken.append(name)
    print(f"promises broken: {', '.join(broken) or 'none'}")
    return len(broken)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
