"""MetaMAE that learns its own settings: bilevel optimisation on unlabelled data.

Step size, contrast weight, nearby ratio and mask ratio differ between modalities in the paper and
are tuned there. Here an outer level learns them while the model trains, from starts that lie far
apart; a tenth of the unlabelled examples judges them, on one fixed task (docs/multilevel.md).

    python examples/bilevel_metamae.py
    python examples/bilevel_metamae.py --dataset digits --steps 400

It prints where each setting started and ended, and draws the way. About a minute on one CPU thread.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from metamae import Config, ConfigError, load_dataset, make_config
from metamae.cli.terminal import guarded
from metamae.config.sections import LEARNABLE
from metamae.methods.learning import initial_value
from metamae.progress import Reporter
from metamae.report.curves import draw_settings
from metamae.training.pretraining import Pretrained, pretrain

LEARNED = [name for name in LEARNABLE if name != "temperature"]
STARTS = {
    "low start": ("0.1", "0.02", "0.05", "0.3"),
    "high start": ("2.5", "0.5", "0.4", "0.7"),
}
KEYS = ("adaptation.step_size", "contrast.weight", "masking.nearby_ratio", "masking.mask_ratio")
SMALL = [
    *("encoder.width=64", "encoder.depth=2", "decoder.width=32", "decoder.depth=1"),
    *("contrast.hidden=64", "contrast.out=32", "training.log_every=5"),
]


def configure(dataset: str, start: str, steps: int, *extra: str) -> Config:
    """A small model that starts from these settings."""
    values = [f"{key}={value}" for key, value in zip(KEYS, STARTS[start], strict=True)]
    return make_config(dataset, overrides=[*SMALL, *values, f"training.steps={steps}", *extra])


def reference(run: Pretrained) -> float:
    """Reference loss, mean over the last outer steps."""
    points = run.history.series["reference"][-10:]
    return sum(value for _, value in points) / len(points)


def least_steps(config: Config) -> int:
    """Steps until the settings have moved once: before that there is nothing to tell."""
    return config.learn.warmup_steps + config.learn.unroll_steps


def main(arguments: list[str] | None = None) -> int:
    """Learn from both starts, compare, draw; returns the exit code."""
    parser = argparse.ArgumentParser(description="MetaMAE that learns its own settings.")
    parser.add_argument("--dataset", default="multispectral_spatial", help="embedded data set")
    parser.add_argument("--steps", type=int, default=240, help="training steps")
    parser.add_argument("--out", type=Path, default=Path("runs/bilevel"), help="folder of pictures")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    return guarded(lambda: learn_from_both(options), interrupted="stopped; nothing is kept")


def learn_from_both(options: argparse.Namespace) -> int:
    """Train from both starts and tell what was learned."""
    reporter, data = Reporter(Console(width=120)), load_dataset(options.dataset)
    learn = (f"learn.settings=[{','.join(LEARNED)}]", "learn.unroll_steps=2")
    # A tenth of the examples judges; a batch has to fit into the others.
    batch = f"training.batch_size={min(64, len(data.need('pretrain')) * 9 // 10)}"
    configs = {
        name: configure(options.dataset, name, options.steps, batch, *learn) for name in STARTS
    }
    least = max(map(least_steps, configs.values()))
    if options.steps < least:
        raise ConfigError(
            f"expected --steps {least} or more, got {options.steps}: the settings first move then"
        )
    runs = {}
    for name, config in configs.items():
        reporter.say(name)
        with tempfile.TemporaryDirectory() as folder:
            runs[name] = pretrain(config, data, Path(folder), reporter=reporter)
    for setting in LEARNED:
        ways = []
        for name, config in configs.items():
            end = runs[name].history.series[f"learned/{setting}"][-1][1]
            ways.append(f"{name} {initial_value(setting, config):.3f} -> {end:.3f}")
        print(f"{setting}: {', '.join(ways)}")
    losses = ", ".join(f"{name} {reference(run):.4f}" for name, run in runs.items())
    print(f"reference loss at the end: {losses}")
    picture = options.out / "settings.png"
    draw_settings({name: [run.history.series] for name, run in runs.items()}, picture)
    print(f"wrote {picture}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
