"""The command ``plastibench diagnose``."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from plastibench.cli.shared import count, import_plugin, read_option_flags
from plastibench.config.errors import UserError
from plastibench.metrics import select


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.formatter_class = _Help
    parser.add_argument("target", help="a run's folder, timm:MODEL, or a file of weights together with --agent")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="timm: weights to load (.safetensors, .pt, .pth)")
    parser.add_argument("--agent", help="what network a file of weights belongs to, with its --agent.OPTION")
    parser.add_argument(
        "--data",
        help="digits, mnist, cifar10, cifar100, …, noise, a folder of images, or FILE.npz "
        "(default: of a run its own, else noise)",
    )
    parser.add_argument("--metrics", help="groups or names of metrics, comma-separated (default: all but slow ones)")
    parser.add_argument("--samples", type=int, default=0, help="how many samples (default: of a run 512, else 64)")
    parser.add_argument("--image-size", type=int, default=0, help="side of the images (default: the model's own)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw layers by metrics (.png, .svg, .pdf)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a stand-alone page")
    parser.add_argument("--device", default="auto", help="cpu, cuda, … (default: a GPU where there is one)")
    parser.add_argument("--threads", type=count, default=0, help="CPU threads (default: as PyTorch chooses)")
    parser.add_argument("--plugin", action="append", default=[], help="import a module or .py file that registers more")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("PLASTIBENCH_DATA", "data")),
        help="where data sets are (default data, or $PLASTIBENCH_DATA)",
    )
    parser.set_defaults(do=_diagnose)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Adds the thresholds when help is shown: until then nothing that needs torch is imported."""

    def format_help(self) -> str:
        from plastibench.diagnosis.report import help_text

        return f"{super().format_help()}\n{help_text()}\n"


def _diagnose(known: argparse.Namespace) -> int:
    for plugin in known.plugin:
        import_plugin(plugin)
    options: dict[str, dict[str, Any]] = {"agent": {}}
    read_option_flags(known.rest, options)
    metrics = None if known.metrics is None else [name.strip() for name in known.metrics.split(",") if name.strip()]
    select(metrics or ())
    if known.samples < 0 or known.samples == 1 or known.image_size < 0:
        raise UserError("--samples must be at least 2, and --image-size at least 1")
    for path in (known.json, known.png, known.html):
        if path is not None and not path.parent.is_dir():
            raise UserError(f"{path}: no folder {path.parent}")
    if known.png is not None and known.png.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"cannot draw into '{known.png.name}'; use a name that ends in .png, .svg or .pdf")

    import torch

    from plastibench.diagnosis.report import diagnose, report
    from plastibench.utils.atomic_io import write_text

    if known.threads > 0:
        torch.set_num_threads(known.threads)
    found = [diagnose(subject, metrics) for subject in _subjects(known, options["agent"])]
    print("\n\n".join(report(each) for each in found))
    if known.json is not None:
        content = [each.as_json() for each in found]
        write_text(
            known.json, json.dumps(content[0] if len(content) == 1 else content, indent=1, allow_nan=False) + "\n"
        )
    if known.png is not None or known.html is not None:
        from plastibench.diagnosis.html_report import draw, page

        if known.png is not None:
            draw(found, known.png)
        if known.html is not None:
            page(found, known.html)
    for path in (known.json, known.png, known.html):
        if path is not None:
            print(path)
    return 0


def _subjects(known: argparse.Namespace, agent_options: dict[str, Any]) -> list[Any]:
    from plastibench.diagnosis import loading
    from plastibench.utils.runtime import resolve_device

    device, target = resolve_device(known.device), Path(known.target)
    if agent_options and known.agent is None:
        raise UserError("--agent.OPTION needs --agent")
    usual: dict[str, Any] = {
        "samples": known.samples or loading.USUAL_SAMPLES,
        "image_size": known.image_size,
        "data_dir": known.data_dir,
    }
    data = known.data or "noise"
    if known.target.startswith("timm:"):
        if known.agent is not None:
            raise UserError("--agent belongs to a file of weights; timm:MODEL names its own network")
        name = known.target.removeprefix("timm:")
        return [loading.timm_model(name, data, device, weights=known.weights, **usual)]
    if known.weights is not None:
        raise UserError("--weights belongs to timm:MODEL; name a file of weights itself, with --agent")
    if target.is_dir():
        if known.agent is not None or known.image_size:
            raise UserError(f"{target} is a run's folder, which knows its agent: no --agent, no --image-size")
        return loading.networks_of_run(target, known.data, device, samples=known.samples, data_dir=known.data_dir)
    if target.is_file():
        if known.agent is None:
            raise UserError(f"{target}: of which network? --agent NAME, or timm:MODEL --weights {target}")
        return [loading.agent_model(known.agent, agent_options, data, device, weights=target, **usual)]
    raise UserError(f"{target}: neither a run's folder, nor a file, nor timm:MODEL")
