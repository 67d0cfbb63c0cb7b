"""Maintenance of collections: verify, repair, compact, transcode, copy, export and import."""

from __future__ import annotations

from edje_qdrant.maintenance.archive import export_collection, import_collection
from edje_qdrant.maintenance.compact import compact, transcode
from edje_qdrant.maintenance.copy import copy_collection
from edje_qdrant.maintenance.fit_codec import fit_codec
from edje_qdrant.maintenance.reports import (
    CompactReport,
    CopyReport,
    Finding,
    RepairReport,
    VerifyReport,
)
from edje_qdrant.maintenance.verify import verify

__all__ = [
    "CompactReport",
    "CopyReport",
    "Finding",
    "RepairReport",
    "VerifyReport",
    "compact",
    "copy_collection",
    "export_collection",
    "fit_codec",
    "import_collection",
    "transcode",
    "verify",
]
