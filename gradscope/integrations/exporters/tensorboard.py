"""TensorBoard event files: one event a step, with one double-precision scalar a column.

NaN and infinities are kept; TensorBoard marks them in the chart. Events carry the time of the
export, as runs don't keep the time of every step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradscope.integrations._extras import missing
from gradscope.integrations.exporters.tags import by_step
from gradscope.run import Run


def write(run: Run, target: Path) -> None:
    """Make the directory `target`, a log directory of TensorBoard.

    Raises:
        GradscopeError: if tensorboard is not installed.
    """
    try:
        from tensorboard.compat.proto import summary_pb2, tensor_pb2, types_pb2
        from torch.utils.tensorboard import FileWriter
    except ImportError as error:
        raise missing("export to tensorboard", "tensorboard", "tensorboard") from error

    series, steps = by_step(run)
    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="scalars")
    # One message a column, whose number is replaced at every step. What a scalar means is told
    # where it comes first.
    entries: list[Any] = [
        summary_pb2.Summary.Value(
            tag=s.tag,
            metadata=summary_pb2.SummaryMetadata(
                plugin_data=plugin,
                data_class=summary_pb2.DATA_CLASS_SCALAR,
                summary_description=s.meaning,
            ),
            tensor=tensor_pb2.TensorProto(dtype=types_pb2.DT_DOUBLE, double_val=[0.0]),
        )
        for s in series
    ]
    numbers = [entry.tensor.double_val for entry in entries]
    told: set[int] = set()
    writer = FileWriter(str(target))
    try:
        for at in steps:
            present = at.series.tolist()
            for i, value in zip(present, at.values.tolist(), strict=True):
                numbers[i][0] = value
            writer.add_summary(summary_pb2.Summary(value=[entries[i] for i in present]), at.step)
            new = set(present) - told
            for i in new:
                entries[i].ClearField("metadata")
            told |= new
    finally:
        writer.close()
