"""Rows of `run.frame()` as Parquet. NaN stays NaN (not null), infinities stay what they are."""

from __future__ import annotations

from pathlib import Path

from gradscope.integrations._extras import missing
from gradscope.run import Run


def write(run: Run, target: Path) -> None:
    """Make the file `target`.

    Raises:
        GradscopeError: if pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise missing("export to parquet", "pyarrow", "parquet") from error
    frame = run.frame()
    texts = {
        name: pa.array(frame[name], pa.string()) for name in ("site", "kind", "edge", "metric")
    }
    table = pa.table(
        {
            "step": pa.array(frame["step"].to_numpy()),
            **texts,
            "value": pa.array(frame["value"].to_numpy(), from_pandas=False),
            "rank": pa.array(frame["rank"].to_numpy()),
        }
    )
    pq.write_table(table.select(list(frame.columns)), target)
