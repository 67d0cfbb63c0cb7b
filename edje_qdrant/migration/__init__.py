"""A new model for a filled collection: encoded beside the old one, then changed over to at once."""

from edje_qdrant.migration.agreement import compare_rankings, sample_texts
from edje_qdrant.migration.change_over import cut_over, drop_old, rollback
from edje_qdrant.migration.encode_side import migrate
from edje_qdrant.migration.reports import (
    Agreement,
    CutOverReport,
    MigrationReport,
    MigrationStatus,
    MissingImage,
)
from edje_qdrant.migration.status import migration_status

__all__ = [
    "Agreement",
    "CutOverReport",
    "MigrationReport",
    "MigrationStatus",
    "MissingImage",
    "compare_rankings",
    "cut_over",
    "drop_old",
    "migrate",
    "migration_status",
    "rollback",
    "sample_texts",
]
