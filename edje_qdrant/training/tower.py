"""Training of a first stage from nothing: a small SigLIP on a recipe's images and captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own custom)
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from edje_qdrant.data.pairs import PairSource
from edje_qdrant.encoders import SiglipEncoder
from edje_qdrant.encoders.siglip_pixels import SiglipPixels
from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.files import replaced_file
from edje_qdrant.metrics import ranks_of, recall_at
from edje_qdrant.text import clean_caption
from edje_qdrant.threads import TRANSFORMERS_LOCK
from edje_qdrant.training.batches import captions_true_of
from edje_qdrant.training.loop import LoopConfig, fit
from edje_qdrant.training.losses import sigmoid_contrastive
from edje_qdrant.training.mixture import Mixture
from edje_qdrant.training.recipe import LanguageModelSection, Recipe, TowerSection

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import BertForMaskedLM, BertTokenizer, SiglipModel

__all__ = [
    "ContrastiveTower",
    "new_language_model",
    "sincos_positions",
    "tokenize",
    "train_tower",
]

# Random crops of training images: smallest share of a side.
_SMALLEST_CROP = 0.75
_VALIDATION_TEXTS = 2000


def train_tower(
    recipe: Recipe,
    sources: Sequence[PairSource],
    held: PairSource,
    folder: Path,
    accelerator: Accelerator,
    *,
    progress: bool = True,
) -> SiglipEncoder:
    """Train the recipe's section `tower`; a stopped run resumes, a finished one is loaded.

    The word pieces are learnt from the training captions. Each step draws images in the order of
    the recipe's weights, and one caption of each; a caption that several images of a batch have is
    no negative of any of them. Images are cropped at random, not mirrored.

    Args:
        recipe: With a section `tower`.
        sources: Its training files.
        held: Its validation file.
        folder: Gets the resized images (`images-*.npy`, side x side x 3 bytes each), the state to
            resume from, and logs.
        accelerator: Of the processes that train together; negatives come from each process's batch.
        progress: Show bars on stderr.

    Returns:
        The encoder with the weights of the best validation, on the CPU.

    Raises:
        ConfigError: An image cannot be read, or there are fewer images than a batch has.
        EdjeError: A loss is not finite.
        MissingExtraError: The extra `train` is not installed.
    """
    section = recipe.tower
    if section is None:
        raise ConfigError("the recipe has no section tower")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(section, sources)
    pixels = SiglipPixels(size={"height": section.image_size, "width": section.image_size})
    torch.manual_seed(recipe.seed)
    module = ContrastiveTower(_new_siglip(section, len(tokenizer))).to(accelerator.device)
    on_cpu = accelerator.device.type == "cpu"
    # On a CPU the backward pass of eager attention is much faster at this size.
    module.siglip.set_attn_implementation("eager" if on_cpu else "sdpa")
    images = [
        _images(source, pixels, folder / f"images-{source.fingerprint}.npy", accelerator, progress)
        for source in sources
    ]
    held_images = _images(
        held, pixels, folder / f"images-{held.fingerprint}.npy", accelerator, progress
    )
    mixture = Mixture(
        [len(source) for source in sources],
        [pairs.weight for pairs in recipe.data.train],
        seed=recipe.seed,
        usable=[np.arange(len(source)) for source in sources],
    )
    size = section.batch_size
    if mixture.rows_per_epoch < size * accelerator.num_processes:
        raise ConfigError(
            f"the tower's batch_size {size} is above the {mixture.rows_per_epoch} images of an "
            "epoch; lower it"
        )
    own = slice(size * accelerator.process_index, size * (accelerator.process_index + 1))

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = mixture.batch(step, size * accelerator.num_processes)[own]
        rng = np.random.default_rng([recipe.seed, step, accelerator.process_index])
        captions = [sources[source].captions(row) for source, row in rows.tolist()]
        texts = [each[int(rng.integers(len(each)))] for each in captions]
        shown = np.stack([images[source][row] for source, row in rows.tolist()])
        return (
            _cropped(pixels.normalise(torch.from_numpy(shown)), rng).to(accelerator.device),
            tokenize(tokenizer, texts, section.text_length).to(accelerator.device),
            torch.from_numpy(captions_true_of(texts, captions)).to(accelerator.device),
        )

    loop = LoopConfig(
        steps=section.steps,
        peak_lr=section.peak_lr,
        warmup_steps=min(section.warmup_steps, section.steps // 5),
        validate_every=min(section.validate_every, section.steps),
        precision=recipe.optimisation.precision,
        seed=recipe.seed,
    )
    fit(
        module, batch, loop, folder=folder, name="tower", best_by="R@1", accelerator=accelerator,
        progress=progress,
        validate=_Validation(module, held, held_images, pixels, tokenizer, section),
    )  # fmt: skip
    siglip = module.to("cpu").siglip
    siglip.set_attn_implementation("sdpa")
    return SiglipEncoder(siglip, pixels, tokenizer, name=section.name)


def new_language_model(section: LanguageModelSection, tokenizer: Any) -> BertForMaskedLM:
    """Return a BERT with random weights for a tokenizer."""
    with TRANSFORMERS_LOCK:
        from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=section.width,
            num_hidden_layers=section.layers,
            num_attention_heads=section.heads,
            intermediate_size=4 * section.width,
            max_position_embeddings=512,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class ContrastiveTower(nn.Module):
    """A SigLIP in training: a batch's contrastive loss."""

    def __init__(self, siglip: SiglipModel) -> None:
        super().__init__()
        self.siglip = siglip

    def forward(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        """Return the loss of pixels `(b, 3, s, s)`, ids `(b, t)` and true pairs `(b, b)`."""
        pixels, input_ids, also_true = batch
        images, texts = self.embed_images(pixels), self.embed_texts(input_ids)
        scale, bias = self.siglip.logit_scale, self.siglip.logit_bias
        return {"contrastive": sigmoid_contrastive(images, texts, scale, bias, ignore=also_true)}

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Embed pixels: `(b, d)`, unit length."""
        return F.normalize(self.siglip.vision_model(pixels).pooler_output.float(), dim=-1)

    def embed_texts(self, input_ids: Tensor) -> Tensor:
        """Embed texts: `(b, d)`, unit length."""
        return F.normalize(self.siglip.text_model(input_ids).pooler_output.float(), dim=-1)


class _Validation:
    """Measure text-to-image search on the validation images, with at most 2,000 captions."""

    def __init__(
        self, tower: ContrastiveTower, held: PairSource, images: NDArray[np.uint8],
        pixels: SiglipPixels, tokenizer: BertTokenizer, section: TowerSection,
    ) -> None:  # fmt: skip
        every = [(text, row) for row in range(len(held)) for text in held.captions(row)]
        chosen = np.random.default_rng(0).permutation(len(every))[:_VALIDATION_TEXTS]
        self._right = np.array([every[i][1] for i in chosen])
        self._ids = tokenize(tokenizer, [every[i][0] for i in chosen], section.text_length)
        self._tower, self._images, self._pixels = tower, images, pixels

    def __call__(self) -> dict[str, float]:
        device = self._tower.siglip.device
        images = torch.cat([
            self._tower.embed_images(self._pixels.normalise(torch.from_numpy(np.array(part))).to(device))
            for part in np.array_split(self._images, -(-len(self._images) // 128))
        ])  # fmt: skip
        texts = torch.cat(
            [self._tower.embed_texts(part.to(device)) for part in torch.split(self._ids, 256)]
        )
        ranks = ranks_of((texts @ images.T).cpu().numpy(), self._right)
        return {f"R@{k}": recall_at(ranks, k) for k in (1, 5, 10)}


def _new_siglip(section: TowerSection, vocabulary: int) -> SiglipModel:
    with TRANSFORMERS_LOCK:
        from transformers import SiglipConfig, SiglipModel

    text = {
        "hidden_size": section.text_width, "num_hidden_layers": section.text_layers,
        "num_attention_heads": section.text_heads, "intermediate_size": 4 * section.text_width,
        "max_position_embeddings": section.text_length, "vocab_size": vocabulary,
        "projection_size": section.width,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": section.width, "num_hidden_layers": section.layers,
        "num_attention_heads": section.heads, "intermediate_size": 4 * section.width,
        "image_size": section.image_size, "patch_size": section.patch_size,
    }  # fmt: skip
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():
        # SigLIP's start, arXiv 2303.15343, 3.2: nearly all pairs of a batch are negatives.
        model.logit_scale.fill_(np.log(10.0))
        model.logit_bias.fill_(-10.0)
        positions = sincos_positions(section.image_size // section.patch_size, section.width)
        model.vision_model.embeddings.position_embedding.weight.copy_(positions)
    return model


def sincos_positions(grid: int, width: int) -> Tensor:
    """Return sines and cosines of row and column: `(grid * grid, width)`.

    A small tower learns positions faster from these than from small random numbers.
    """
    frequency = 1.0 / 100 ** (torch.arange(width // 4) / (width // 4))
    angle = torch.arange(grid)[:, None] * frequency  # (grid, width / 4)
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # (grid, width / 2)
    rows = line[:, None].expand(grid, grid, -1)
    columns = line[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=-1).reshape(grid * grid, width)


def _tokenizer(section: TowerSection, sources: Sequence[PairSource]) -> BertTokenizer:
    """Learn word pieces from the training captions; the same ones in every process.

    The library's own trainer of word pieces is not deterministic. That of byte pairs is: the pieces
    into which it splits the words of the captions become the word pieces.
    """
    with TRANSFORMERS_LOCK:
        from tokenizers import Tokenizer
        from tokenizers.models import BPE
        from tokenizers.trainers import BpeTrainer
        from transformers import BertTokenizer

    counted: Counter[str] = Counter()
    splitting = BertTokenizer({"[UNK]": 0}, strip_accents=False).backend_tokenizer
    for source in sources:
        for row in range(len(source)):
            for text in source.captions(row):
                normal = splitting.normalizer.normalize_str(clean_caption(text))
                counted.update(w for w, _ in splitting.pre_tokenizer.pre_tokenize_str(normal))
    words = sorted(counted)
    pairs = Tokenizer(BPE())
    pairs.train_from_iterator(
        (word for word in words for _ in range(counted[word])),
        BpeTrainer(vocab_size=section.vocabulary, min_frequency=2, show_progress=False),
    )
    letters: set[str] = set()
    pieces: Counter[str] = Counter()
    for word in words:
        letters.update(_marked(word))
        for piece in _marked(pairs.encode(word).tokens):
            pieces[piece] += counted[word]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    longer = sorted(pieces.keys() - letters, key=lambda piece: (-pieces[piece], piece))
    kept = [*special, *sorted(letters), *longer][: section.vocabulary]
    vocabulary = {piece: number for number, piece in enumerate(kept)}
    return BertTokenizer(vocabulary, strip_accents=False)


def _marked(parts: Sequence[str]) -> list[str]:
    """Return the parts of a word as word pieces: all but the first begin with `##`."""
    return [part if number == 0 else f"##{part}" for number, part in enumerate(parts)]


def tokenize(tokenizer: BertTokenizer, texts: Sequence[str], length: int) -> Tensor:
    """Return `(b, length)` ids, padded as SigLIP's are."""
    ids: Tensor = tokenizer(
        [clean_caption(text) for text in texts], padding="max_length", truncation=True,
        max_length=length, return_tensors="pt",
    )["input_ids"]  # fmt: skip
    return ids


def _images(
    source: PairSource, pixels: SiglipPixels, path: Path, accelerator: Accelerator, progress: bool
) -> NDArray[np.uint8]:
    """Return a source's images, resized once into a file: `(n, side, side, 3)`, memory-mapped.

    Raises:
        ConfigError: An image cannot be read.
    """
    side = int(pixels.size["height"])
    shape = (len(source), side, side, 3)

    def resized(row: int) -> NDArray[np.uint8]:
        return np.asarray(pixels.resize(source.open(row)), dtype=np.uint8)

    if accelerator.is_main_process and not path.exists():
        bar = tqdm(total=len(source), desc="images", unit=" images", disable=not progress)
        with replaced_file(path) as file, bar, ThreadPoolExecutor() as threads:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            try:
                for start in range(0, len(source), 256):
                    rows = range(start, min(start + 256, len(source)))
                    for image in threads.map(resized, rows):
                        file.write(image.tobytes())
                        bar.update()
            except ImageReadError as error:
                raise ConfigError(
                    f"a tower is trained on readable images only: {error}; take it out of "
                    f"{source.name}"
                ) from error
    accelerator.wait_for_everyone()
    loaded: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return loaded


def _cropped(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Crop each image at random and scale it to its size again: `(b, 3, s, s)`."""
    number = len(pixels)
    scale = rng.uniform(_SMALLEST_CROP, 1.0, (number, 2))
    shift = rng.uniform(-1, 1, (number, 2)) * (1 - scale)
    matrix = np.zeros((number, 2, 3), np.float32)
    matrix[:, 0, 0], matrix[:, 1, 1] = scale[:, 0], scale[:, 1]
    matrix[:, :, 2] = shift
    grid = F.affine_grid(torch.from_numpy(matrix), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
