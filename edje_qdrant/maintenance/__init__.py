"""Maintenance of collections: verify, repair, compact, copy, find duplicates and others."""

from __future__ import annotations

from edje_qdrant.maintenance.archive import export_collection, import_collection
from edje_qdrant.maintenance.compact import compact, transcode
from edje_qdrant.maintenance.copy import copy_collection
from edje_qdrant.maintenance.duplicates import DuplicateRule, find_duplicates
from edje_qdrant.maintenance.fit_codec import fit_codec
from edje_qdrant.maintenance.reports import (
    CompactReport,
    CopyReport,
    DuplicateGroup,
    DuplicateImage,
    DuplicatesReport,
    Finding,
    RepairReport,
    VerifyReport,
)
from edje_qdrant.maintenance.text_fields import (
    TextFieldsReport,
    add_text_fields,
    drop_text_fields,
)
from edje_qdrant.maintenance.verify import verify

__all__ = [
    "CompactReport",
    "CopyReport",
    "DuplicateGroup",
    "DuplicateImage",
    "DuplicateRule",
    "DuplicatesReport",
    "Finding",
    "RepairReport",
    "TextFieldsReport",
    "VerifyReport",
    "add_text_fields",
    "compact",
    "copy_collection",
    "drop_text_fields",
    "export_collection",
    "find_duplicates",
    "fit_codec",
    "import_collection",
    "transcode",
    "verify",
]
