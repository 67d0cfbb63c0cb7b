"""What a folder holds beside the images that people put there, by well-known names."""

from __future__ import annotations

import os

__all__ = ["VIDEO_SUFFIXES", "file_kind", "folder_kind"]

#: Files in a folder that are videos.
VIDEO_SUFFIXES = frozenset({
    ".3g2", ".3gp", ".avi", ".flv", ".insv", ".lrv", ".m2t", ".m2ts", ".m4v", ".mkv", ".mov",
    ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".vob", ".webm", ".wmv",
})  # fmt: skip
_DOCUMENT_SUFFIXES = frozenset({".ai", ".doc", ".docx", ".eps", ".pdf", ".ppt", ".pptx", ".ps"})
# RAW files of cameras whose previews are not read.
_OTHER_RAW = frozenset({
    ".3fr", ".crw", ".dcr", ".erf", ".fff", ".gpr", ".iiq", ".k25", ".kdc", ".mef", ".mos", ".mrw",
    ".nksc", ".rwl", ".sr2", ".srf", ".x3f",
})  # fmt: skip
# Images in formats that are not read.
_OTHER_IMAGES = frozenset({
    ".dds", ".djvu", ".exr", ".hdr", ".icns", ".jxl", ".jxr", ".kra", ".pcx", ".psb", ".psd",
    ".svg", ".svgz", ".tga", ".xcf",
})  # fmt: skip
# Notes that cameras, phones and editors write beside images.
_SIDECARS = frozenset({
    ".aae", ".arp", ".cos", ".dop", ".exif", ".nmd", ".on1", ".pp3", ".rwt", ".thm", ".vrd", ".xmp",
})  # fmt: skip
_SYSTEM_FILES = frozenset({
    "desktop.ini", "ehthumbs.db", "ehthumbs_vista.db", "folder.db", "icon", "picasa.ini",
    "thumbs.db", "zbthumbnail.info",
})  # fmt: skip
# Thumbnails and previews that programs and network disks keep beside images: the same images again,
# only smaller.
_THUMBNAIL_FOLDERS = frozenset({
    "@eadir", "captureone", "ipod photo cache", "thumbnails", "thumbs",
})  # fmt: skip
_LIGHTROOM_PREVIEWS = ".lrdata"
# Of systems and network disks: what was deleted, snapshots, and what archives hold beside files.
_SYSTEM_FOLDERS = frozenset({
    "#recycle", "#snapshot", "$recycle.bin", "@recently-snapshot", "@recycle", "@sharebin",
    "@tmp", "__macosx", "lost+found", "recycler", "system volume information",
})  # fmt: skip
# Folders that a photo program shows as one file: originals beside previews, faces and databases.
_PHOTO_LIBRARIES = (
    ".aplibrary", ".cocatalog", ".migratedphotolibrary", ".photolibrary", ".photoslibrary",
    "iphoto library",
)  # fmt: skip
_ORIGINALS = frozenset({"masters", "originals"})


def file_kind(name: str) -> str:
    """Return the kind of a file that is no image that is read, with its suffix or name.

    Args:
        name: The file's name, without its folder.

    Example:
        >>> file_kind("clip.MOV"), file_kind("._a.jpg"), file_kind("README")
        ('video (.mov)', 'hidden file', 'no image (without suffix)')
    """
    if name.startswith("."):
        return "hidden file"
    if name.strip().lower() in _SYSTEM_FILES:
        return f"file of the system ({name.strip()})"
    suffix = os.path.splitext(name)[1].lower()
    for kind, suffixes in (
        ("video", VIDEO_SUFFIXES),
        ("document", _DOCUMENT_SUFFIXES),
        ("camera's RAW file that is not read", _OTHER_RAW),
        ("image in a format that is not read", _OTHER_IMAGES),
        ("note beside an image", _SIDECARS),
    ):
        if suffix in suffixes:
            return f"{kind} ({suffix})"
    return f"no image ({suffix or 'without suffix'})"


def folder_kind(name: str, parent: str) -> str | None:
    """Return the kind of a folder that is left out, with its name; None if it is searched.

    Args:
        name: The folder's name, without its parents.
        parent: The name of the folder that it lies in.

    Example:
        >>> folder_kind("@eaDir", "2024"), folder_kind(".git", "2024"), folder_kind("2024", "")
        ('folder of thumbnails (@eaDir)', 'hidden folder', None)
    """
    if name.startswith("."):
        return "hidden folder"
    lower = name.lower()
    if lower in _THUMBNAIL_FOLDERS or lower.endswith(_LIGHTROOM_PREVIEWS):
        return f"folder of thumbnails ({name})"
    if lower in _SYSTEM_FOLDERS:
        return f"folder of the system ({name})"
    if parent.lower().endswith(_PHOTO_LIBRARIES) and lower not in _ORIGINALS:
        return f"folder of a photo library beside its originals ({name})"
    return None
