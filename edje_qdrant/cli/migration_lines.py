"""Lines that say how far a migration is and what it did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edje_qdrant.cli.loading import shortened

if TYPE_CHECKING:
    from edje_qdrant.migration import Agreement, MigrationReport, MigrationStatus

__all__ = ["agreement_line", "named", "report_lines", "status_line"]


def named(model: str | None) -> str:
    """Return a model's name for a line."""
    return "an unnamed model" if model is None else model


def status_line(status: MigrationStatus) -> str:
    """Return a line on a migration that is not ended."""
    done = f"{status.other_images:,} of {status.images:,} images encoded"
    old = f"the side of {named(status.other)}, {status.other_images:,} images,"
    return {
        "encoding": f"to {named(status.other)}: {done}",
        "closing": f"to {named(status.other)}: {done}; a cut-over was interrupted, and there are "
        "no writes until migrate --cut-over or --rollback is run",
        "rolling back": f"a rollback from {named(status.other)} was interrupted; run "
        "migrate --rollback again",
        "settling": f"a cut-over from {named(status.other)} was interrupted; run migrate "
        "--cut-over again",
        "kept": f"cut over; {old} is kept for migrate --rollback, and migrate --drop-old deletes "
        "it",
        "dropping": f"cut over; {old} is being deleted; run migrate --drop-old again",
    }[status.state]


def report_lines(report: MigrationReport, model: str | None) -> list[str]:
    """Return lines on a run of `migrate`."""
    more = [
        f"{count:,} {what}"
        for count, what in ((report.updated, "updated"), (report.deleted, "deleted"))
        if count
    ]
    lines = [
        f"{report.encoded:,} images encoded with {named(model)}"
        + "".join(f", {each}" for each in more)
        + f", in {report.seconds:.1f} s; it has {report.done:,} of {report.images:,} now"
    ]
    if report.missing:
        lines.append(f"{len(report.missing):,} images cannot be encoded:")
        lines += shortened(f"{m.path or m.image_id}: {m.reason}" for m in report.missing)
    if report.left_out:
        lines.append(f"{report.left_out:,} points of other programs are not migrated")
    return lines


def agreement_line(agreement: Agreement) -> str:
    """Return a line on how far two rankings agree."""
    tau = "" if agreement.tau is None else f", and order them with tau {agreement.tau:.2f}"
    return (
        f"for {agreement.texts} texts, both models find {agreement.overlap:.0%} of the first "
        f"{agreement.depth} hits{tau}; {agreement.same_first:.0%} of the texts have the same first "
        "hit"
    )
