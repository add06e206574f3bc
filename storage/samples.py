"""Looks at a run, kept: what dashboards show of the pipeline itself."""

from __future__ import annotations

from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from storage.connection import Document, translated
from storage.documents import PipelineSample


class SampleRepository:
    """Writes samples of runs."""

    def __init__(self, database: Database[Document]) -> None:
        self._database = database

    def add(self, sample: PipelineSample) -> None:
        """Keep one; the same one again is harmless. Raises `Unavailable` where MongoDB does not answer."""
        document = {"_id": f"{sample.run}@{sample.timestamp.isoformat()}", **sample.model_dump()}
        with translated():
            try:
                self._database.pipeline_samples.insert_one(document)
            except DuplicateKeyError:
                return
