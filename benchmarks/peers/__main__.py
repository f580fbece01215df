"""`python -m benchmarks.peers`: bertfast beside other engines for BERT on this machine's CPU."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import chart, inputs, report
from .compare import Comparison, Settings
from .contenders import CONTENDERS, Contender, absent
from .cpu_time import TooBusy
from .machine import Rates, describe

COMMAND = "python -m benchmarks.peers"


def main() -> int:
    arguments = _parse()
    chosen = [c for c in CONTENDERS if any(part in c.name for part in arguments.contenders)]
    reasons = {contender.name: absent(contender) for contender in chosen}
    rates = Rates(arguments.threads)
    results = {
        "command": shlex.join([*COMMAND.split(), *sys.argv[1:]]),
        "machine": describe(arguments.threads),
        "rounds": arguments.rounds,
        "absent": {name: reason for name, reason in reasons.items() if reason},
        "models": {},
        "given_up": "it has not ended yet",
    }

    def save() -> None:
        results["machine"].update(fma_flops=rates.flops, read_bytes=rates.bytes)
        report.write(results, arguments.out)
        chart.write(results, arguments.out)

    try:
        _run(arguments, [c for c in chosen if not reasons[c.name]], rates, results, save)
        del results["given_up"]
    except TooBusy as error:
        results["given_up"] = str(error)
    except KeyboardInterrupt:
        results["given_up"] = "interrupted"
    save()
    print((arguments.out / "peers.md").read_text(encoding="utf-8"))
    return 1 if "given_up" in results else 0


def _run(
    arguments: argparse.Namespace,
    contenders: list[Contender],
    rates: Rates,
    results: dict,
    save: Callable[[], None],
) -> None:
    settings = Settings(
        threads=arguments.threads,
        rounds=arguments.rounds,
        allowed=arguments.others,
        most_dropped=arguments.most_dropped,
        loads=arguments.loads,
        work=arguments.out / "work",
        logs=arguments.out / "logs",
        say=_say,
        save=save,
    )
    for folder in (settings.work, settings.logs):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    try:
        for shape in arguments.models:
            comparison = Comparison(shape, settings, rates)
            results["models"][shape] = comparison.found
            comparison.run(contenders)
            shutil.rmtree(comparison.work)
    finally:
        shutil.rmtree(settings.work, ignore_errors=True)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    add = parser.add_argument
    loads = [*inputs.LOADS, inputs.text.LOAD]
    add("--threads", type=int, default=2, help="of every contender (default 2)")
    add("--rounds", type=int, default=10, help="samples of a contender on a load (default 10)")
    add("--models", nargs="+", default=inputs.SHAPES, choices=inputs.SHAPES)
    add("--loads", nargs="+", default=loads, choices=loads)
    add("--contenders", nargs="+", default=[""], help="those whose names have one of these parts")
    add(
        "--others", type=float, default=0.05,
        help="share of the CPU that other processes may take during a sample (default 0.05)",
    )  # fmt: skip
    add(
        "--most-dropped", type=int, default=12,
        help="samples dropped in a row before the run is given up (default 12)",
    )  # fmt: skip
    add("--out", type=Path, default=Path("build/peers"), help="default build/peers")
    if sys.platform != "linux":
        parser.error("it reads Linux's /proc")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
