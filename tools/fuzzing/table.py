"""The readers that `tools/fuzz.py` knows."""

from __future__ import annotations

from . import data, people, records

READERS = {
    reader.name: reader
    for reader in (
        data.IMAGES,
        data.NPZ,
        data.PARQUET,
        data.FOLDERS,
        people.ZIPS,
        people.TABLES,
        people.IDX,
        records.WEIGHTS,
        records.CONFIG,
        records.RECIPE,
        records.METRICS,
        records.RESULT,
        records.PREDICTIONS,
        records.ANALYSIS,
        records.INTENT,
        records.NAMES,
        records.REPORT,
    )
}
