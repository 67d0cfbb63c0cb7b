"""Make a data set of emoji: pictures of four artists with names and keywords in eleven languages.

    npm install --prefix packages --ignore-scripts @iconify-json/noto@1 @iconify-json/twemoji@1 \
        @iconify-json/fluent-emoji-flat@1 @iconify-json/openmoji@1 \
        cldr-annotations-full@48 cldr-annotations-derived-full@48
    pip install resvg-py
    python examples/emoji/make_data.py --packages packages --out emoji

Nothing of this is part of edje-qdrant; `licences.md` in the output folder says whose it is.

The output folder has one annotation file for each use. A caption is a name or a list of keywords:

- `train.jsonl`: pictures of three artists, with their captions in all languages; `names.jsonl`: the
  same pictures with their names alone; `val.jsonl`: a twentieth of the emoji of these artists,
  which are in no other file;
- `artist.LANGUAGE.jsonl`: the same emoji, drawn by an artist of whom training sees nothing;
- `combinations.LANGUAGE.jsonl`: people whose combination of occupation or activity, gender, skin
  tone and hair is in no training picture of any artist;
- `flags.LANGUAGE.jsonl`: flags of the artist that is not in training. A flag does not show whose it
  is to those who have not learnt it, so flags have a test of their own.

No caption of `combinations` is one of a training picture: training pictures that would share one
are left out. The split depends on the emoji alone, so that it is the same on every machine.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import resvg_py
from PIL import Image
from tqdm import tqdm

TRAINING_ARTISTS = ("noto", "twemoji", "fluent-emoji-flat")
UNSEEN_ARTIST = "openmoji"
LANGUAGES = ("en", "de", "fr", "es", "pt", "it", "ru", "zh", "ja", "ko", "ar")
_FULL, _DERIVED = "cldr-annotations-full", "cldr-annotations-derived-full"
_SKIN_TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}

_PRESENTATION, _JOINER = "\N{VARIATION SELECTOR-16}", "\N{ZERO WIDTH JOINER}"
_PEOPLE = {"\N{MAN}", "\N{WOMAN}", "\N{ADULT}", "\N{BOY}", "\N{GIRL}", "\N{CHILD}",
           "\N{OLDER MAN}", "\N{OLDER WOMAN}", "\N{OLDER ADULT}"}  # fmt: skip
_GENDERS = {"\N{MALE SIGN}", "\N{FEMALE SIGN}"}
_REGIONAL = range(0x1F1E6, 0x1F200)
_BLACK_FLAG, _TAG_END = "\N{WAVING BLACK FLAG}", "\N{CANCEL TAG}"


def main() -> None:
    """Draw the pictures, and write the annotation files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packages", type=Path, required=True, help="what npm was given")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=128, help="pixels")
    parser.add_argument("--languages", default=",".join(LANGUAGES))
    options = parser.parse_args()
    languages = tuple(options.languages.split(","))
    modules = options.packages / "node_modules"
    captions = {language: read_captions(modules, language) for language in languages}
    drawings = [
        drawing for artist in (*TRAINING_ARTISTS, UNSEEN_ARTIST)
        for drawing in read_drawings(modules / "@iconify-json" / artist, artist)
        if drawing.emoji in captions[languages[0]]
    ]  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    draw(drawings, options.out, options.side)
    counts = write_annotations(drawings, captions, options.out)
    (options.out / "licences.md").write_text(licences(modules), encoding="utf-8")
    print(json.dumps(counts, indent=1))


# ---------------------------------------------------------------------------------- captions


def read_captions(modules: Path, language: str) -> dict[str, tuple[str, ...]]:
    """Return for each emoji its name, and its keywords in one text if it has some."""
    found: dict[str, tuple[str, ...]] = {}
    for package, folder, key in (
        (_FULL, "annotations", "annotations"),
        (_DERIVED, "annotationsDerived", "annotationsDerived"),
    ):
        path = modules / package / folder / language / "annotations.json"
        for emoji, texts in json.loads(path.read_text("utf-8"))[key]["annotations"].items():
            name = texts.get("tts", [""])[0]
            keywords = ", ".join(text for text in texts.get("default", ()) if text != name)
            if name:
                found[plain(emoji)] = (name, keywords) if keywords else (name,)
    return found


def plain(emoji: str) -> str:
    """Return an emoji without the marks that ask for a coloured picture."""
    return emoji.replace(_PRESENTATION, "")


# ---------------------------------------------------------------------------------- pictures


@dataclass(frozen=True, slots=True)
class Drawing:
    """An emoji as one artist drew it; `svg` is the whole file."""

    artist: str
    emoji: str
    svg: str

    @property
    def path(self) -> str:
        code = "-".join(f"{ord(character):x}" for character in self.emoji)
        return f"pictures/{self.artist}/{code}.png"


def read_drawings(package: Path, artist: str) -> Iterator[Drawing]:
    """Read an artist's drawings, one for each emoji."""
    icons = json.loads((package / "icons.json").read_text("utf-8"))
    names = json.loads((package / "chars.json").read_text("utf-8"))
    seen = set()
    for code in sorted(names):
        emoji = plain("".join(chr(int(part, 16)) for part in code.split("-")))
        icon = resolved(icons, names[code])
        if icon is None or emoji in seen:
            continue
        seen.add(emoji)
        width, height = icon.get("width", icons["height"]), icon.get("height", icons["height"])
        yield Drawing(artist, emoji, (
            f'<svg xmlns="http://www.w3.org/2000/svg" '
            f'xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{icon.get("left", 0)} '
            f'{icon.get("top", 0)} {width} {height}">{icon["body"]}</svg>'
        ))  # fmt: skip


def resolved(icons: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Return an icon; of an alias, the one that it stands for, unless it is turned."""
    if name in icons["icons"]:
        return dict(icons["icons"][name])
    alias = icons.get("aliases", {}).get(name)
    if alias is None or {"rotate", "hFlip", "vFlip"} & alias.keys():
        return None
    return resolved(icons, alias["parent"])


def draw(drawings: list[Drawing], out: Path, side: int) -> None:
    """Draw what is not there yet, each on a white square."""
    missing = [drawing for drawing in drawings if not (out / drawing.path).exists()]
    for artist in {drawing.artist for drawing in missing}:
        (out / "pictures" / artist).mkdir(parents=True, exist_ok=True)
    jobs = [(drawing.svg, str(out / drawing.path), side) for drawing in missing]
    with ProcessPoolExecutor() as pool:
        for _ in tqdm(
            pool.map(draw_one, jobs, chunksize=64), total=len(jobs), unit=" pictures", disable=None
        ):
            pass


def draw_one(job: tuple[str, str, int]) -> None:
    """Draw one file; what is interrupted leaves no half of a picture."""
    svg, path, side = job
    drawn = resvg_py.svg_to_bytes(svg_string=svg, width=side, skip_system_fonts=True)
    image = Image.open(io.BytesIO(bytes(drawn))).convert("RGBA")
    image.thumbnail((side, side))
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    part = Path(f"{path}.part")
    square.convert("RGB").save(part, "PNG")
    part.replace(path)


# ---------------------------------------------------------------------------------- splits


def write_annotations(
    drawings: list[Drawing], captions: dict[str, dict[str, tuple[str, ...]]], out: Path
) -> dict[str, int]:
    """Write all annotation files; return the number of pictures in each."""
    files: dict[str, list[dict[str, Any]]] = defaultdict(list)
    unseen = {drawing.emoji for drawing in drawings if is_unseen_combination(drawing.emoji)}
    forbidden = {text for texts in captions.values() for emoji in unseen
                 for text in texts.get(emoji, ())}  # fmt: skip
    dropped = 0
    for drawing in drawings:
        emoji = drawing.emoji
        if emoji in unseen:
            use = "combinations"
        elif drawing.artist == UNSEEN_ARTIST:
            use = "flags" if is_flag(emoji) else "artist"
        else:
            use = "val" if part_of(emoji, 20) == 1 and not is_flag(emoji) else "train"
        in_languages = {
            language: texts[emoji] for language, texts in captions.items() if emoji in texts
        }
        if use in ("train", "val"):
            every = list(dict.fromkeys(text for texts in in_languages.values() for text in texts))
            if not forbidden.isdisjoint(every):
                dropped += 1
                continue
            if use == "val":  # names alone: each is a query of the validation
                every = list(dict.fromkeys(texts[0] for texts in in_languages.values()))
            files[use].append({"image": drawing.path, "caption": every})
            if use == "train":
                names = list(dict.fromkeys(texts[0] for texts in in_languages.values()))
                files["names"].append({"image": drawing.path, "caption": names})
        else:
            for language, texts in in_languages.items():
                files[f"{use}.{language}"].append({"image": drawing.path, "caption": [texts[0]]})
    for name, lines in files.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (out / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return {**{name: len(lines) for name, lines in sorted(files.items())},
            "left out of training": dropped}  # fmt: skip


def is_flag(emoji: str) -> bool:
    """Return whether an emoji is the flag of a country or a region."""
    return ord(emoji[0]) in _REGIONAL or (emoji[0] == _BLACK_FLAG and emoji[-1] == _TAG_END)


def is_unseen_combination(emoji: str) -> bool:
    """Return whether an emoji is one of the fifth of all combinations that training never sees.

    A combination is a person with an occupation, an activity or hair, and with a skin tone.
    """
    characters = set(emoji)
    person = bool(characters & (_PEOPLE | _GENDERS)) and _JOINER in characters
    return person and bool(characters & _SKIN_TONES) and part_of(emoji, 5) == 0


def part_of(emoji: str, parts: int) -> int:
    """Return a number below `parts`, always the same for an emoji."""
    return int.from_bytes(hashlib.sha256(emoji.encode()).digest()[:8], "big") % parts


# ---------------------------------------------------------------------------------- licences


def licences(modules: Path) -> str:
    """Return a page that names artists, licences and versions."""
    lines = ["# Whose pictures and words these are", "",
             "| package | version | by | licence |", "| --- | --- | --- | --- |"]  # fmt: skip
    for artist in (*TRAINING_ARTISTS, UNSEEN_ARTIST):
        folder = modules / "@iconify-json" / artist
        about = json.loads((folder / "info.json").read_text("utf-8"))
        version = json.loads((folder / "package.json").read_text("utf-8"))["version"]
        licence, author = about["license"], about["author"]
        lines.append(
            f"| @iconify-json/{artist} | {version} | [{author['name']}]({author['url']}) | "
            f"[{licence['title']}]({licence['url']}) |"
        )
    for package in (_FULL, _DERIVED):
        about = json.loads((modules / package / "package.json").read_text("utf-8"))
        lines.append(
            f"| {package} | {about['version']} | [Unicode](https://cldr.unicode.org) | "
            f"{about['license']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
