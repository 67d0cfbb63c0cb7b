"""The exported tokenizer reads raw texts as the model does after its clean-up."""

from __future__ import annotations

import json
import re
from itertools import product
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import BertTokenizer

from edje_qdrant.model.onnx.tokenizer import portable_tokenizer
from edje_qdrant.text import clean_caption

SUBJECTS = [
    "A dog catches a red frisbee",
    "two kids’ bikes lean on a fence",
    "“Happy birthday!” cake — 7 candles",
    "It’s raining; she’s got an umbrella ☔",
    "the ﬁrst ﬂight of a puﬃn",
    "ＲＥＤ ＣＡＲ，１９６５",
    "Mom's café au lait & croissant",
    "Rock &amp; roll, &quot;live&quot; at 8:30",
    "L’église de Saint-Éloi à Bréauté",
    "Straße in KÖLN, Weiß & Grün",
    "El niño comió ñoquis – ¡qué rico!",
    "São Paulo à noite… visto do avião",
    "Zażółć gęślą jaźń, ŁÓDŹ",
    "İstanbul'da bir ÇAY bahçesi",
    "Кошка спит на подоконнике",
    "ДВА ёжика и „гриб“",
    "Η ΘΑΛΑΣΣΑ ΣΤΟΥΣ ΒΡΑΧΟΥΣ, Αθήνα",
    "कुत्ता दौड़ता है",
    "قطة سوداء، على الجدار",
    "חתול על הגג ‏(2)",
    "一只狗在草地上跑，很开心！",
    "東京タワー「夜景」３枚",
    "ﾈｺと犬　ｶﾞｰﾃﾞﾝで",
    "한강에서 자전거 타는 사람",
    "ภาพแมวสองตัว",
    "Tiếng Việt: phố cổ Hội An",
    "a man's 18″ wheel, 50% off, $4.99 #sale @shop",
    "snow_leopard_03.JPG",
]
ENDINGS = [
    "",
    ".",
    "!!! 😂😂",
    " at sunset 🌅",
    " 👩‍👩‍👧 family",
    " — photo by J. Ağaoğlu",
    " (c) 2024 Getty",
    " &copy; 2019 &lt;b&gt;",
    "\nsecond line\twith tab",
    "\u00a0in Zürich",
    " “quoted”, ‘single’ and «guillemets»",
    " ½ cup, 3²=9, 20°C",
    " №5 ™ ®",
    "\u200b zero\u200dwidth\ufeff",
    " e\u0301te\u0301 decomposed",
    " http://example.com/a_b?c=d",
    " ❤️🇯🇵",
    " ﬁn…",
    " - - -",
    "  double  spaces  ",
    " ＆ ｗｉｄｅ＿ｏｎｅ",
    " it´s `so`",
    " \u2028after a separator",
    " P&EACUTE;REZ &eacute;t&eacute; &#8217;n&#x27; &nbsp;x",
    " ŒUVRE ĳs Ǆ",
    " \x92s from Windows \x85",
    " \x1b[31mred\x1b[0m",
    " 狗dog狗",
    " [SEP] [MASK] <image>",
    " 100 000,50 €",
    " RTL \u202bעברית\u202c",
    " ΣΑΣ Σ. ΑΣ",
    " o’clock ok",
    " Ⅷ ① ㎏",
    " 𝕗𝕒𝕟𝕔𝕪 𝓽𝓮𝔁𝓽",
    " jalapeño’s",
]
CAPTIONS = [subject + ending for subject, ending in product(SUBJECTS, ENDINGS)]


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    """A tokenizer that knows every character of the captions, so that equal ids mean something."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer = BertTokenizer(
        {word: n for n, word in enumerate(special)}
    ).backend_tokenizer.normalizer
    cleaned = [normalizer.normalize_str(clean_caption(text)) for text in CAPTIONS]
    letters = sorted({letter for text in cleaned for letter in text} - {" "})
    words = [*special, *letters, *(f"##{letter}" for letter in letters)]
    return BertTokenizer({word: n for n, word in enumerate(words)})


def both_ids(tokenizer: Any, texts: list[str]) -> tuple[list[list[int]], list[list[int]]]:
    """Return the ids of the model's path, and those of the exported file from the raw texts."""
    exported = Tokenizer.from_str(portable_tokenizer(tokenizer, 63).decode())
    exported.no_padding()
    model = tokenizer([clean_caption(text) for text in texts], truncation=True, max_length=63)
    return model["input_ids"], [read.ids for read in exported.encode_batch(texts)]


def test_a_thousand_captions_have_the_models_ids(tokenizer: BertTokenizer) -> None:
    assert len({*CAPTIONS}) == len(CAPTIONS) >= 1000
    expected, found = both_ids(tokenizer, CAPTIONS)
    assert [
        (text, e, f) for text, e, f in zip(CAPTIONS, expected, found, strict=True) if e != f
    ] == []
    unknown = tokenizer.unk_token_id
    assert not any(unknown in ids for ids in found)


def test_every_character_is_cleaned_as_the_model_does(tokenizer: BertTokenizer) -> None:
    exported = Tokenizer.from_str(portable_tokenizer(tokenizer, 63).decode()).normalizer
    own = tokenizer.backend_tokenizer.normalizer
    # Everything typed by phones lives here: letters, punctuation, wide forms, emoji.
    ranges = [(1, 0x600), (0x1E00, 0x2C00), (0x3000, 0x3400), (0xFB00, 0xFB50), (0xFE00, 0x10000)]
    for character in map(chr, (code for low, high in ranges for code in range(low, high))):
        text = f"a{character}b c"
        expected = own.normalize_str(clean_caption(text)).split()
        assert exported.normalize_str(text).split() == expected, ascii(character)


def test_its_patterns_are_read_by_other_languages(tokenizer: BertTokenizer) -> None:
    """JavaScript refuses an escape that means nothing, such as `\\#`."""
    data = json.loads(portable_tokenizer(tokenizer, 63))
    patterns = [step.get("pattern", {}) for step in data["normalizer"]["normalizers"]]
    escaped = {c for p in patterns for c in re.findall(r"\\(.)", p.get("Regex", ""))}
    assert escaped <= {"[", "]", "p"}


def test_what_the_file_does_not_repair(tokenizer: BertTokenizer) -> None:
    """The two kinds that docs/export.md names."""
    for text in ("donâ€™t", "&ZeroWidthSpace;a &#128512; &Jscr;"):
        (expected,), (found,) = both_ids(tokenizer, [text])
        assert expected != found
