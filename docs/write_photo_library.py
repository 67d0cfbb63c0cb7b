"""Write the tables of `images.md` about real files from `docs/results/photo-library.json`.

It comes from `benchmarks/photo_library.py --out docs/results/photo-library.json`; a test fails when
the tables are stale.
"""

from __future__ import annotations

from result_tables import RESULTS, read, table

TABLE = RESULTS / "photo-library-table.md"


def page() -> str:
    """Return the up-to-date tables."""
    found = read("photo-library")
    report, again = found["report"], found["again"]
    rows = [
        ["files", f"{found['files']:,} of {len(found['kinds'])} suffixes"],
        ["stored when the first run was killed", f"{found['stored_when_killed']:,}"],
        ["added by the second run", f"{report['added']:,} in {found['seconds']:g} s"],
        ["stored then", f"{report['points']:,} images, frames and pages"],
        ["twice in the source", f"{report['twice']:,}"],
        ["left out, by kind", _kinds(report["left_out"])],
        ["failed, by reason", _kinds(report["failed_by_reason"])],
        ["added by a third run", f"{again['added']:,} in {again['seconds']:.1f} s"],
    ]
    rows += [[f"found: {name}", f"{number:,}"] for name, number in found["found"].items()]
    note = f"The bundled model. {found['date']}, {found['machine']}."
    return table(["", ""], rows, note)


def _kinds(counts: dict[str, int]) -> str:
    return "; ".join(f"{number} x {kind}" for kind, number in counts.items())


if __name__ == "__main__":
    TABLE.write_text(page(), encoding="utf-8")
