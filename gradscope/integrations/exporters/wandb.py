"""An offline run of Weights & Biases: nothing leaves the machine until `wandb sync DIR/wandb/*`.

One history row a step, with one number a column. NaN and infinities are kept; −0 becomes 0.
"""

from __future__ import annotations

from pathlib import Path

from gradscope.integrations._extras import missing
from gradscope.integrations.exporters.tags import by_step
from gradscope.run import Run


def write(run: Run, target: Path) -> None:
    """Make the directory `target`, which then holds `wandb/offline-run-…`.

    Raises:
        GradscopeError: if wandb is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise missing("export to wandb", "wandb", "wandb") from error

    target.mkdir()
    series, steps = by_step(run)
    names = [s.tag for s in series]
    settings = wandb.Settings(
        mode="offline",
        console="off",  # what the exporting process prints is no part of the run
        disable_git=True,
        save_code=False,
        silent=True,
        x_disable_meta=True,
        x_disable_stats=True,
    )
    config = run.meta.get("args") or {}
    with wandb.init(
        project="gradscope",
        dir=target,
        name=run.name,
        config=config,
        settings=settings,
        reinit="create_new",
    ) as record:
        for at in steps:
            numbers = zip(at.series.tolist(), at.values.tolist(), strict=True)
            record.log({names[i]: value for i, value in numbers}, step=at.step)
