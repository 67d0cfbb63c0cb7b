"""Write `results.md` and its plot from `docs/results/`; a test fails when the page is stale.

`ablation.json` there comes from `python benchmarks/ablation.py`, and `scenes.json` is the
`eval.json` of `edje-qdrant eval scenes --num-candidates 5 10 20 50 100`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from result_tables import RESULTS, read, table

from edje_qdrant.evaluation.bootstrap import Difference, difference, resampled_means

DOCS = RESULTS.parent
PAGE = DOCS / "results.md"
BASE = "16 tokens"

HEAD = """# Results

Written by `python docs/write_results.py` from the files in `docs/results/`, which the commands
named below wrote.

## The bundled model on scenes

1,000 held-out scenes, one caption each; none of their contents was in training.

```
edje-qdrant eval scenes --num-candidates 5 10 20 50 100
```

"""
CONTRADICTIONS = """
Text to image uses the demo's queries; image to text finds, for each picture, its own caption.
Intervals hold 95% of 1,000 bootstrap resamples of the pictures.

![R@1 against the number of candidates](results/candidates.png)

### Which facts each stage reads

The caption of each of {scenes:,} held-out scenes, and the same caption after one fact was changed:
how often the true one scores higher. 50% is chance. The first stage reads which colours and shapes
there are, but not how they go together: that is what the joint encoder is for.

```
OMP_NUM_THREADS=1 python benchmarks/contradictions.py --out docs/results/contradictions.json
```

{facts}
*Without the last training* is the same model after tower and joint encoder were trained, before the
last 2,000 steps, which also predict where the mentioned objects lie ([Training](training.md)).

Measured: {date}, {machine}.

"""
ABLATION = """## Ablation of the training

Every row is the first training of the joint encoder (`[joint]` in the bundled model's recipe) with
one changed setting, on the bundled encoder, {steps:,} steps instead of 5,000, seed {seed}. R@1 with
50 candidates on the same 1,000 scenes; the difference to the first row is paired, with its 95%
interval.

```
python benchmarks/ablation.py --steps {steps}
```

"""
NOTES = """
Each variant was trained once, with one seed: an interval describes this model, not another training
of the same kind. After {steps:,} steps the model is not fully trained (R@1 rises most between steps
3,000 and 3,750 of 5,000), so the table shows how fast each variant learns, not
its final quality.

![R@1 of every variant](results/ablation.png)

"""
MISSING = "Not run yet: {names}.\n"
SEARCH = """
## What the options of a search give

[Search](search.md) describes the options. They were calibrated on scenes of one seed and measured
on {scenes:,} scenes of another seed, with {candidates} candidates.

```
edje-qdrant calibrate scenes --num-candidates 50 --out CALIBRATED
python benchmarks/search_quality.py
```

![R@1 against the budget, false accepts against true ones, and calibration](results/search.png)

"""
SEARCH_NOTES = """
- **fusion**: {fusion}
- **cutoff** (`min_score`): each query is searched twice, the second time without the pictures that
  its caption fits. {cutoff}
  This is a hard task, because some other pictures differ from the right one in a single relation or
  size. When the probabilities were fitted, half of the queries had no right picture. In the plot
  all queries have one, so more hits are right than the probabilities say.
- **adaptive**: with one hit, the rule misses at most 0.2% of the best pictures. With more hits, the
  last of them seldom has a clear lead, so little is saved.
- **budget_ms**: as shares of the median time of a whole search in the same run, {budget} searches
  each.

Measured: {date}, {machine}.

### Heat maps

How much of an explanation's heat lies in the box of the named object, the box's share of the
picture (even heat), how often the hottest patch lies in it (points), and how often it holds more
heat than every other object (ahead); details are in [Explain](explain.md):

```
python benchmarks/heat_maps.py --scenes 400 --captions 120
```

{heat}
"""
PUBLISHED = """
## The published figures

These figures were not reproduced here, since the weights and the data were not available. The paper
(arXiv 2510.06820) reports R@1 text to image / image to text:

| model | Flickr30k, zero-shot | COCO, fine-tuned | stored a picture |
| --- | --- | --- | --- |
| EDJE local, ViT-B/16 | 84.3 / 94.3 | 60.9 / 76.1 | 442 kB |
| EDJE local, ViT-L/16 | 87.8 / 96.5 | 64.9 / 81.0 | 442 kB |
| EDJE compressed to 128 | 87.1 / 96.3 | 64.6 / 81.0 | 98 kB |
| EDJE compressed to 64 | 86.9 / 96.4 | 64.6 / 80.9 | 49 kB |

With the weights and the data, these commands measure the same:

```
edje-qdrant convert pytorch_model.pth --out ./edje --siglip google/siglip2-large-patch16-384 \\
    --language-model microsoft/MiniLM-L12-H384-uncased
edje-qdrant eval dataset_flickr30k.json --images ./flickr30k-images --split test --model ./edje
edje-qdrant eval dataset_coco.json --images ./coco --split test --model ./edje
```

## Public benchmarks by mteb

`edje_qdrant.integrations.mteb` runs any model on the tasks of
[mteb](integrations.md#mteb), and INQUIRE-Rerank as another task. None of these was run here, since
the data were not available. Install the extra `mteb`; there is one command for each:

```
python benchmarks/public.py flickr30k --model ./edje --out flickr30k.json
python benchmarks/public.py coco --model ./edje --out coco.json
python benchmarks/public.py xm3600 --model ./edje --out xm3600.json
python benchmarks/public.py inquire-rerank --model ./edje --out inquire-rerank.json
```

`--stages first` measures the first stage alone. mteb reports nDCG@10 first, and `map_at_100` of
INQUIRE-Rerank; where each query has one right image, `hit_rate_at_1` is R@1.
"""
SECOND_LOOK = """
## A second look

Reranking cannot find a picture that is not among the candidates. Can the joint encoder's scores
improve the first stage? Three ways were tried, each with the same number of reranked images:

- *feedback*: half of the images are reranked, and their scores go into the engine's query with
  relevance feedback (Qdrant 1.17 and the embedded engine);
- *Rocchio*: half are reranked, and the query's embedding is moved by Rocchio's rule;
- *adapter*: the query's embedding goes through a linear map that was fitted to the scores of 2,000
  other captions.

Coefficients were chosen on a third of the queries. The figures are those of the others, with the
paired difference to the first stage alone and its 95% interval. An image is *found* if a right one
is among the reranked.

### On scenes

```
OMP_NUM_THREADS=1 python benchmarks/second_look.py --out docs/results/second-look.json
```

"""
SECOND_LOOK_EMOJI = """
### On emoji

Names of emoji that no training picture shows, in eleven languages, with the model of `emoji.toml`
alone; a name has up to three right pictures. The adapter is taught by names of training pictures.
(The splits of the section on emoji leave nothing to measure: hardly a picture of the unknown artist
is found, and nearly every name of a combination has a right picture among ten.)

```
OMP_NUM_THREADS=1 python benchmarks/second_look.py --model runs/emoji/model --queries 600 \\
    --annotations emoji/val.jsonl --taught-by emoji/names.jsonl \\
    --out docs/results/second-look-emoji.json
```

"""
EMOJI = """
### On emoji

English names of the artist that training does not see, with the model of the section above. The
adapter is taught by names of the validation file, in eleven languages.

```
OMP_NUM_THREADS=1 python benchmarks/second_look.py --model runs/emoji/model --queries 600 \\
    --annotations emoji/artist.en.jsonl --taught-by emoji/val.jsonl \\
    --out docs/results/second-look-emoji.json
```

"""
EMOJI = """
## Emoji in eleven languages

Pictures that artists drew and names that Unicode's translators wrote, with a model that learnt from
nothing else: tower and joint encoder started from random weights
([Another language, another world](training.md#another-language-another-world)). One language model
serves all languages: {model}. There is no pretrained language model in it.

```
edje-qdrant train --recipe examples/recipes/emoji.toml --out runs/emoji
edje-qdrant train --recipe examples/recipes/emoji-continued.toml --out runs/emoji-continued
OMP_NUM_THREADS=1 python benchmarks/emoji.py --model runs/emoji-continued/model --data emoji \\
    --out docs/results/emoji.json --sheet docs/results/emoji.png
OMP_NUM_THREADS=1 python benchmarks/emoji.py --model runs/emoji/model --data emoji \\
    --out docs/results/emoji-before.json
```

Each query is a name, {texts} of each split and language drawn with seed {seed}. All pictures of the
split with this name are right, and R@k is whether one of them is among the first k.
{candidates} candidates are reranked; *blended* is `fusion="blend"` with its default weights, which
were chosen on scenes. Intervals hold 95% of 1,000 bootstrap resamples of the names.

"""
CHANGED = {
    "relation": "a relation, reversed",
    "places": "the places of two objects, swapped",
    "colours": "the colours of two objects, swapped",
    "shapes": "the shapes of two objects, swapped",
    "size": "the size of an object",
    "colour": "the colour of an object",
}
EMOJI_SPLITS = {
    "artist": """### An unknown artist

The same emoji as in training, as OpenMoji drew them; nothing of OpenMoji is in training. {images:,}
pictures.

""",
    "combinations": """### Unknown combinations

People whose combination of occupation or activity, gender, skin tone and hair is in no picture and
no name of the training, by four artists, one of them unknown. {images:,} pictures.

""",
    "flags": """### Flags

Flags as the unknown artist drew them; the same flags by the other artists are in training.
{images:,} pictures.

""",
}
EMOJI_KINDS = """### What is wrong where the first hit is wrong

Of all languages together; by how the first hit differs from the right picture that it resembles
most.

"""
EMOJI_STAGES = ("first stage", "reranked", "blended")
EMOJI_COLUMNS = [
    *(("R@1", stage) for stage in EMOJI_STAGES),
    *((metric, stage) for metric in ("R@5", "R@10") for stage in EMOJI_STAGES[:2]),
]
EMOJI_SHEET = """### Some names

Names drawn at random, in turn of an emoji and of a combination that are in no training picture, and
the first five pictures before and after reranking. Right pictures have a frame; a name that three
artists drew has three.

![Names of emoji in several languages with their first hits before and after reranking]({sheet})

Pictures: [Noto Emoji](https://github.com/googlefonts/noto-emoji), Google, Apache 2.0;
[Twemoji](https://github.com/jdecked/twemoji), Twitter and contributors,
[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/);
[Fluent Emoji](https://github.com/microsoft/fluentui-emoji), Microsoft, MIT. They lie on white
squares. Names: [Unicode CLDR](https://cldr.unicode.org), Unicode License.

"""
EMOJI_NOTES = """### What follows

- **Combinations** of what the model knows are found in all languages about equally well: most first
  hits are right, and nearly all names have a right picture among the first ten.
- **An unknown artist** and flags drawn by one are hardly found: one name in a hundred. OpenMoji
  draws black outlines, smaller in the square; three artists and random crops did not teach the
  tower to look past a style. Pictures in new styles need more styles in training.
- **Reranking alone** is as good as the first stage on combinations, not better: no language differs
  by more than chance. Six of ten wrong first hits differ from the right picture only in skin tone,
  gender or both, before and after it. The tower saw 320,000 pictures, each against 127 other texts;
  the joint encoder 211,200 pairs, each against one or two other pictures and texts, and its
  validation still rose at the end.
- **Blended**, the first hit of a combination is right more often than with either alone, in every
  language; in Arabic, German, Japanese and Korean it gains on the first stage by more than chance.
  The two stages make different errors.

"""
EMOJI_BEFORE = """### What the last 1,300 steps changed

Combinations, mean of R@1 over the eleven languages. `emoji.toml` alone trains the joint encoder for
2,400 steps with one negative of each kind; `emoji-continued.toml` goes on with two.

"""
WIDE = """
## At the published width

64 tokens of 384, as the published model has, and a joint encoder of {layers} layers that begins
with all-MiniLM-L6-v2; the published one has 12. English names of emoji that are in no training
picture or name, {texts} of them, among {images:,} pictures of four artists; {candidates} candidates
are reranked. *Blended* is `fusion="blend"` with its default weights, which were chosen on scenes.
`examples/emoji/README.md` says how to get the data and the language model.

```
wide=examples/recipes/emoji-wide.toml
on=examples/recipes/emoji-wide-continued.toml
edje-qdrant train --recipe $wide --out runs/emoji-wide
edje-qdrant train --recipe $on --out runs/emoji-wide-continued
for n in 32 16; do
    edje-qdrant train --recipe $wide --out runs/emoji-wide-$n --set model.num_tokens=$n
    edje-qdrant train --recipe $on --out runs/emoji-wide-$n-continued \\
        --set model.start_from=runs/emoji-wide-$n/model
done
python examples/emoji/stack_layers.py runs/emoji-wide-continued runs/stacked
longer="--set seed=2 --set optimisation.steps=250"
edje-qdrant train --recipe $on --out runs/emoji-wide-12-layers $longer \\
    --set model.start_from=runs/stacked/model
edje-qdrant train --recipe $on --out runs/emoji-wide-6-layers $longer \\
    --set model.start_from=runs/emoji-wide-continued/model
for n in 1 4 8 32; do
    edje-qdrant train --recipe $on --out runs/grouped-$n --set data.grouped_batches=$n \\
        --set model.start_from=runs/emoji-wide-16/model --set optimisation.steps=500
done
OMP_NUM_THREADS=1 python benchmarks/wide_tokens.py --data emoji-en \\
    --model runs/emoji-wide-continued/model --other runs/emoji-wide/model \\
    --other runs/emoji-wide-32-continued/model --other runs/emoji-wide-16-continued/model \\
    --other runs/emoji-wide-6-layers/model --other runs/emoji-wide-12-layers/model \\
    --other runs/grouped-1/model --other runs/grouped-4/model --other runs/grouped-8/model \\
    --other runs/grouped-32/model --out docs/results/wide_tokens.json
```

The first stage has R@1 {first}; a right picture is among the candidates of {among:.1%} of the
names.

"""
WIDE_TRIAL = 500  # steps of the comparison of grouped batches
WIDE_GROUPS = """
Batches of similar pictures ([Objectives](training.md#objectives)): the model of 16 tokens after its
1,200 steps, trained on for 500:

"""
WIDE_PRECISIONS = """
Precision of the joint encoder, {texts} of the names, compared with float32; tau is Kendall's, of
the order of the candidates:

"""
WIDE_NOTES = """
float8 is computed in float32 from rounded numbers, as a GPU's float8 products would have them; on a
GPU it was not run.

- **Blended** with the first stage, this joint encoder finds more names than the first stage alone,
  by more than chance; alone it is worse than the first stage. It has seen 76,800 pairs, each
  against one or two others, and validation still rose at the end.
- **16 tokens** alone are as good as 64; blended, 64 has more right, but the difference was not
  tested. The tower gives 36 patches of a picture, so 64 tokens cannot hold more than these. The
  training with 32 ended lower: with one training each, chance cannot be told from the number of
  tokens.
- **12 layers** are no better than 6 after equal steps from equal weights. Both lost R@1 in these
  250 steps, which began with the full learning rate again.
- **Grouped batches**: the intervals of 1 (random batches), 4 and 8 overlap, so a gain is not shown;
  32 is too hard.
- **8 bits** in the joint encoder keep the first hits, and nearly the order.
- What **codecs** lose at this width is in [Storage](storage.md#cost-in-quality).

Measured: {date}, {machine}, {threads} thread. Training seeds 0, 1 and 2, one run each.
"""
LANGUAGES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "pt": "Portuguese",
    "it": "Italian", "ru": "Russian", "zh": "Chinese", "ja": "Japanese", "ko": "Korean",
    "ar": "Arabic",
}  # fmt: skip


WORDS = """
## Words as well as looks

[Words](words.md) of captions, file names and signs can be searched beside the looks. Each row is
compared with the search by looks alone on the same queries, paired, with the 95% interval.
*Captions*: a tenth of the drawn scenes have a caption, and queries are other captions of the same
scenes. *Folders*: the scenes are in folders with names of places, and queries name the place, too.
*Signs*: among the scenes are pictures of a sign with a word and a number, which RapidOCR has read;
the joint encoder of the demo model cannot read.

```
OMP_NUM_THREADS=1 python benchmarks/hybrid.py --out docs/results/hybrid.json
```

"""


def page() -> str:
    """Return the up-to-date page."""
    scenes = read("scenes")
    runs = read_runs()
    steps, seed = runs[0]["steps"], runs[0]["seed"]
    parts = [HEAD, _scenes(scenes), _contradictions()]
    parts += [ABLATION.format(steps=steps, seed=seed), _ablation(runs)]
    parts += ["\n", *(f"- {line}\n" for line in _effects(runs)), NOTES.format(steps=steps)]
    missing = [name for name in _variants() if name not in {run["variant"] for run in runs}]
    if missing:
        parts.append(MISSING.format(names=", ".join(missing)))
    dates = sorted({f"{run['date']}, {run['machine']}" for run in runs})
    parts.append(f"Trained and measured: {'; '.join(dates)}.\n")
    looks = SECOND_LOOK + _second_look("second-look")
    looks += SECOND_LOOK_EMOJI + _second_look("second-look-emoji")
    looks += WORDS + _words()
    return "".join(parts) + _search() + _emoji() + _wide() + looks + PUBLISHED


def _contradictions() -> str:
    """Return the section on the facts of a caption: a row for each fact."""
    report = read("contradictions")
    before, bundled = report["without the last training"], report["bundled model"]
    rows = []
    for change, figures in bundled["changes"].items():
        earlier = before["changes"][change]["joint encoder"]
        shares = [figures["first stage"], figures["joint encoder"], earlier]
        cells = [f"{m:.1%} ({low:.1%} to {high:.1%})" for m, low, high in shares]
        rows.append([CHANGED[change], f"{figures['captions']:,}", *cells])
    heads = ["changed", "captions", "first stage", "joint encoder", "without the last training"]
    return CONTRADICTIONS.format(
        scenes=bundled["scenes"], facts=table(heads, rows), date=bundled["date"],
        machine=bundled["machine"],
    )  # fmt: skip


def _emoji() -> str:
    """Return the section on emoji: a table of each split, and the kinds of errors."""
    report = read("emoji")
    if not report:
        return ""
    size = report["model"]
    head = EMOJI.format(
        model=f"a BERT of {size['layers']} layers, {size['width']} wide, whose "
        f"{size['word_pieces']:,} word pieces were learnt from the names of all eleven languages; "
        f"it reads {size['tokens']} tokens of a picture",
        texts=max(row["texts"] for row in report["rows"]),
        seed=report["seed"],
        candidates=report["num_candidates"],
    )
    parts = [head]
    for split, text in EMOJI_SPLITS.items():
        rows = {row["language"]: row for row in report["rows"] if row["split"] == split}
        parts.append(text.format(images=rows["en"]["images"]))
        heads = ["language", "names", *(f"{m} {stage}" for m, stage in EMOJI_COLUMNS)]
        heads += ["R@1 gained, reranked", "R@1 gained, blended"]
        cells = [_language(name, rows[code]) for code, name in LANGUAGES.items()]
        parts.append(table(heads, cells) + "\n")
    parts += [EMOJI_KINDS, _kinds(report["rows"]), EMOJI_BEFORE, _continued(report)]
    note = "Measured: {date}, {machine}, {threads} threads.\n".format(**report)
    return "".join(parts) + EMOJI_NOTES + EMOJI_SHEET.format(sheet="results/emoji.png") + note


def _wide() -> str:
    """Return the section on tokens of the published width."""
    report = read("wide_tokens")
    first = report["models"][0]
    parts = [WIDE.format(
        layers=first["layers"], texts=report["texts"], seed=report["seed"], images=report["images"],
        candidates=report["num_candidates"], first=_share(report["first stage"]),
        among=report["among the candidates"],
    )]  # fmt: skip
    heads = ["tokens", "layers", "steps of 32 pictures", "R@1 reranked", "R@1 blended"]
    heads += ["gained, reranked", "gained, blended", "changed, reranked"]
    rows = [
        [
            str(m["tokens"]), str(m["layers"]),
            " + ".join(f"{t['steps']:,}" for t in m["trainings"]),
            _share(m["R@1"]), _share(m["R@1 blended"]), _changed(m, "R@1 gained"),
            _changed(m, "R@1 gained, blended"), _changed(m),
        ]
        for m in report["models"] if m["trainings"][-1]["steps"] != WIDE_TRIAL
    ]  # fmt: skip
    parts.append(table(heads, rows))
    trials = [m for m in report["models"] if m["trainings"][-1]["steps"] == WIDE_TRIAL]
    rows = [
        [
            str(m["trainings"][-1]["grouped_batches"]), _share(m["R@1"]), _share(m["R@1 blended"]),
            _changed(m, "R@1 gained"), _changed(m, "R@1 gained, blended"),
        ]
        for m in trials
    ]  # fmt: skip
    parts += [WIDE_GROUPS, table(["batches grouped", *heads[3:-1]], rows)]
    rows = [
        [r["precision"], _share(r["R@1"]), _changed(r), f"{r['tau']:.4f}" if "tau" in r else ""]
        for r in report["precisions"]
    ]
    parts.append(WIDE_PRECISIONS.format(texts=report["precisions"][0]["texts"]))
    parts.append(table(["precision", "R@1", "changed, points", "tau"], rows))
    return "".join(parts) + WIDE_NOTES.format(**report)


def _share(found: list[float]) -> str:
    mean, low, high = (100 * value for value in found)
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def _changed(row: dict[str, Any], name: str = "R@1 changed") -> str:
    """Return a paired difference in points, if the row has it."""
    if name not in row:
        return ""
    mean, low, high = (100 * row[name][end] for end in ("mean", "low", "high"))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def _language(name: str, row: dict[str, Any]) -> list[str]:
    cells = [name, f"{row['texts']:,}"]
    for metric, stage in EMOJI_COLUMNS:
        cells.append(_share(row[stage][metric]))
    cells += [_changed(row, f"R@1 gained, {stage}") for stage in ("reranked", "blended")]
    return cells


def _continued(report: dict[str, Any]) -> str:
    """Return a table of the model before and after the continued training."""
    body = []
    for name, each in (("emoji.toml", read("emoji-before")), ("emoji-continued.toml", report)):
        rows = [row for row in each["rows"] if row["split"] == "combinations"]
        means = (np.mean([row[stage]["R@1"][0] for row in rows]) for stage in EMOJI_STAGES)
        body.append([f"`{name}`", *(f"{100 * mean:.1f}" for mean in means)])
    return table(["trained with", *EMOJI_STAGES], body) + "\n"


def _kinds(rows: list[dict[str, Any]]) -> str:
    """Return a table of wrong first hits by kind, before and after reranking."""
    columns = [(split, stage) for split in EMOJI_SPLITS for stage in EMOJI_STAGES]
    counted: dict[tuple[str, str], Counter[str]] = {column: Counter() for column in columns}
    for row in rows:
        for stage, kinds in row["wrong"].items():
            counted[row["split"], stage].update(kinds)
    total: Counter[str] = sum(counted.values(), Counter())
    body = [
        [kind, *(f"{counted[column][kind]:,}" for column in columns)]
        for kind, _ in total.most_common()
    ]
    texts = {split: sum(r["texts"] for r in rows if r["split"] == split) for split in EMOJI_SPLITS}
    body.append(["all that are wrong", *(f"{counted[c].total():,}" for c in columns)])
    body.append(["names", *(f"{texts[split]:,}" for split, _ in columns)])
    return table(["first hit", *(f"{split}, {stage}" for split, stage in columns)], body) + "\n"


def _second_look(name: str) -> str:
    """Return the table of ways to use the scores in the first stage, and what follows from it."""
    report = read(name)
    if not report:
        return "Not run yet.\n"
    rows = []
    for row in report["rows"]:
        cells = [str(row["reranked"]), row["way"], row["coefficients"]]
        for name in ("found", "R@1"):
            cells += [f"{row[name]:.1%}", _gap(row.get(f"{name} difference"))]
        rows.append(cells)
    gains = [
        f"{row['way']} with {row['reranked']} reranked"
        for row in report["rows"]
        if (gap := row.get("found difference")) and gap["mean"] >= 0.02 and gap["low"] > 0
    ]
    verdict = (
        f"Two points or more, and more than chance: {', '.join(gains)}."
        if gains
        else "None of them gains two points with an interval above zero, so none is in the product."
    )
    heads = ["reranked", "way", "coefficients", "image found", "difference", "R@1", "difference"]
    note = (
        f"{report['data']}, {report['queries']:,} queries, model `{report['model']}`. "
        f"{report['date']}, {report['machine']}."
    )
    return table(heads, rows, verdict, note)


def _words() -> str:
    """Return the table of searches by words and looks."""
    report = read("hybrid")
    if not report:
        return "Not run yet.\n"
    rows = []
    for row in report["rows"]:
        weights = ["looks alone", "-"]
        if row["words_weight"] is not None:
            weights = [f"{row['words_weight']:g}", f"{row['fusion_weight']:g}"]
        cells = [row["task"], str(row["candidates"]), *weights]
        for name in ("found", "R@1"):
            cells += [f"{row[name]:.1%}", _gap(row.get(f"{name} difference"))]
        rows.append(cells)
    heads = [
        "queries", "candidates", "`words_weight`", "`fusion_weights`", "image found", "difference",
        "R@1", "difference",
    ]  # fmt: skip
    looks, both = report["latency_ms"].values()
    note = (
        f"{report['scenes']:,} scenes, {report['signs']} signs of which RapidOCR read "
        f"{report['signs_read_exactly']:.0%} without a mistake, model `{report['model']}`. The "
        f"first stage of one query with 100 candidates took {looks:.1f} ms by looks and "
        f"{both:.1f} ms by both. {report['date']}, {report['machine']}."
    )
    return table(heads, rows, note)


def _gap(gap: dict[str, float] | None) -> str:
    if gap is None:
        return "-"
    return f"{gap['mean']:+.1%} ({gap['low']:+.1%} to {gap['high']:+.1%})"


def _search() -> str:
    """Return the section on search options."""
    import runpy

    found = read("search")
    script = runpy.run_path(str(DOCS.parent / "benchmarks" / "search_quality.py"))
    ways = {row["way"]: row for row in found["fusion"]}
    best = max(ways.values(), key=lambda row: row["R@1 of other scenes"])
    mean, low, high = best["less rerank"]
    sure = "" if low <= 0 <= high else ", more than chance"
    fusion = (
        f"chosen on the other scenes, `{best['way']}` gives {mean:+.1%} ({low:+.1%} to "
        f"{high:+.1%}) here{sure}. The default is still the joint encoder alone: that is the "
        "published method, and hits are then in the order of their `score`."
    )
    cut = found["cutoff"]
    cutoff = (
        f'`min_score="auto"` accepts {cut["true at cutoff"]:.1%} of right answers and '
        f"{cut['false at cutoff']:.1%} of queries without one."
    )
    tables = (RESULTS / "heat-maps-tables.md").read_text(encoding="utf-8")
    # Leave out the snippet markers.
    own = tables.partition("[end:own]")[0].splitlines()
    heat = "\n".join(line for line in own if not line.startswith("<!--"))
    notes = SEARCH_NOTES.format(
        fusion=fusion, cutoff=cutoff, budget=found["budget"]["queries"], date=found["date"],
        machine=found["machine"], heat=heat,
    )  # fmt: skip
    head = SEARCH.format(scenes=found["scenes"], candidates=found["candidates"])
    return f"{head}{script['table'](found)}\n{notes}"


def read_runs() -> list[dict[str, Any]]:
    """Return the ablation's runs, with the baseline first."""
    runs: list[dict[str, Any]] = read("ablation")["runs"]
    return sorted(runs, key=lambda run: (run["variant"] != BASE, _variants().index(run["variant"])))


def compare(run: dict[str, Any], base: dict[str, Any]) -> Difference:
    """Return the paired difference of R@1 between a run and the baseline."""
    hits = np.array([[int(a), int(b)] for a, b in zip(run["hits"], base["hits"], strict=True)])
    means = resampled_means(hits.astype(float), np.arange(len(hits)))
    return difference(float(np.diff(hits.mean(axis=0))[0]) * -1, means[:, 0], means[:, 1])


def _variants() -> list[str]:
    import runpy

    script = DOCS.parent / "benchmarks" / "ablation.py"
    return list(runpy.run_path(str(script))["VARIANTS"])


def _scenes(scenes: dict[str, Any]) -> str:
    figures = ["R@5", "R@10", "R@20", "MRR@20", "nDCG@10"]
    heads = ["direction", "candidates", "R@1 first stage", "R@1 reranked", *figures]
    rows = []
    names = {"t2i": "text to image", "i2t": "image to text"}
    for system in scenes["systems"]:
        found = system["reranked"]
        low, high = system["intervals"]["reranked"]["R@1"]
        rows.append(
            [
                names[system["direction"]],
                f"{system['num_candidates']}",
                f"{system['first_stage']['R@1']:.3f}",
                f"{found['R@1']:.3f} ({low:.3f} to {high:.3f})",
                *(f"{found[figure]:.3f}" for figure in figures),
            ]
        )
    return table(heads, rows)


def _ablation(runs: list[dict[str, Any]]) -> str:
    rows = []
    for run in runs:
        low, high = run["R@1 interval"]
        rows.append(
            [
                run["variant"],
                f"{run['bytes_per_picture']:,}",
                f"{run['R@1']['50']:.1%}",
                f"{low:.1%} to {high:.1%}",
                _points(run, runs[0]),
            ]
        )
    return table(["variant", "bytes a picture", "R@1", "95%", "difference, points"], rows)


def _points(run: dict[str, Any], base: dict[str, Any]) -> str:
    if run is base:
        return ""
    found = compare(run, base)
    return f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def _effects(runs: list[dict[str, Any]]) -> list[str]:
    lines = []
    for run in runs[1:]:
        found = compare(run, runs[0])
        verdict = "worse" if found.high < 0 else "better" if found.low > 0 else None
        lines.append(
            f"{run['variant']}: {verdict}, by {abs(100 * found.mean):.1f} points."
            if verdict
            else f"{run['variant']}: no significant difference on these 1,000 queries."
        )
    return lines


def draw(path: Path) -> None:
    """Plot every variant's R@1 with its interval."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    runs = read_runs()[::-1]
    figure, axes = plt.subplots(figsize=(7.5, 0.9 + 0.42 * len(runs)), layout="constrained")
    values = [100 * run["R@1"]["50"] for run in runs]
    ends = np.array([[100 * e for e in run["R@1 interval"]] for run in runs]).T
    errors = np.abs(ends - values)
    colours = ["#189e54" if run["variant"] == BASE else "#8aa0b8" for run in runs]
    axes.barh([run["variant"] for run in runs], values, color=colours, height=0.62)
    axes.errorbar(values, range(len(runs)), xerr=errors, fmt="none", ecolor="#1c1e24", capsize=3)
    first = 100 * runs[-1]["first_stage"]
    axes.axvline(first, color="#70747e", linestyle="--", linewidth=1)
    axes.annotate(
        f"first stage {first:.1f}", (first, 1.0), xycoords=("data", "axes fraction"),
        xytext=(4, 4), textcoords="offset points", color="#70747e", fontsize=9,
    )  # fmt: skip
    axes.set_xlabel("R@1, %, 50 candidates, 1,000 held-out scenes")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    draw(RESULTS / "ablation.png")
