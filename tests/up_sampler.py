"""A small convolutional head that corrects the maps of a decoder, and its training by cross-validation.

One decision: a head learns as the converter does, from maps of decoders that have not seen the patient, so it gets
maps like those of new patients. Only "joint" learns together with its decoder.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medad_core.config import Settings
from medad_core.data.read import read_slices
from medad_core.models.decoder import Decoder, focal_dice_loss, upsample
from medad_core.models.encoder import VisionTransformerEncoder
from medad_core.models.text import load_sentences, load_text_encoder, text_features
from medad_core.run.gather import by_index, find_cohort
from medad_core.training.decoder import LOSS_SIZE, _picks, decode_case, train_decoder
from medad_core.training.features import TrainingCase, encode_case, mirror
from medad_core.training.fitting import Grids, load_grids, save_grids
from medad_core.training.folds import deal_folds
from medad_core.training.loop import CPU, Loop

log = logging.getLogger(__name__)
SIZE = 126  # half the side of the encoder's pictures; a pixel is 1.44 mm
DILATIONS = (1, 2, 4, 1)  # of the head's layers: a pixel sees 25 mm around it
CHANNELS = 24
MIXED = 64  # linear combinations of a patch's features
VARIANTS = {
    "map": ("map",),  # smoothing and calibration, without any picture
    "pictures": ("map", "pictures"),
    "features": ("map", "pictures", "features"),
    "joint": ("map", "pictures", "decoder"),
}
STEPS = 240  # of a head; "joint", whose decoder starts anew, takes 600


class UpSampler(nn.Module):
    """Corrects the map of a decoder in 126 × 126; a new one changes nothing.

    It gets the grid (B, taps, gh, gw) and, where it `sees` them, pictures (B, 3, 126, 126) from 0 to 1 and features of
    patches (B, taps, gh, gw, width). It gives logits (B, 1, 126, 126), which are rendered like a grid with one tap.
    """

    def __init__(self, sees: Sequence[str], taps: int, width: int) -> None:
        super().__init__()
        self.sees = sees
        self.mix = nn.Linear(taps * width, MIXED) if "features" in sees else None
        channels = [taps + 3 * ("pictures" in sees) + MIXED * ("features" in sees), *[CHANNELS] * len(DILATIONS)]
        self.layers = nn.Sequential()
        for given, made, dilation in zip(channels[:-1], channels[1:], DILATIONS, strict=True):
            self.layers.extend([nn.Conv2d(given, made, 3, padding=dilation, dilation=dilation), nn.ReLU()])
        self.layers.append(nn.Conv2d(CHANNELS, 1, 1))
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, grid: Tensor, pictures: Tensor, features: Tensor) -> Tensor:
        drawn = upsample(grid, (SIZE, SIZE))
        # The log-odds of the mean probability of the taps: what bilinear rendering shows.
        shown = F.logsigmoid(drawn).logsumexp(1, keepdim=True) - F.logsigmoid(-drawn).logsumexp(1, keepdim=True)
        seen = [drawn / 10]
        if "pictures" in self.sees:
            seen.append(2 * pictures - 1)
        if self.mix is not None:
            even = F.layer_norm(features, features.shape[-1:]).movedim(1, -2).flatten(-2)
            seen.append(upsample(self.mix(even).movedim(-1, 1), (SIZE, SIZE)))
        return shown + self.layers(torch.cat(seen, dim=1))


@dataclass(frozen=True)
class Shown:
    """A case, and what the encoder saw of its slices: windows (N, 3, S, S) uint8."""

    case: TrainingCase
    windows: np.ndarray


@dataclass(frozen=True)
class Lesson:
    """What is learned from a case: its grids, and `cover` (N, 126, 126), the tumour's share of every pixel."""

    shown: Shown
    grids: np.ndarray
    cover: np.ndarray


@dataclass(frozen=True)
class Trial:
    """All cases and their `twins`, with left and right exchanged; the ids of those in each fold."""

    own: list[Shown]
    twins: list[Shown]
    folds: list[list[str]]
    text: Tensor
    settings: Settings
    work: Path

    def fold_of(self, case_id: str) -> int:
        """The fold that a case is in."""
        return next(number for number, ids in enumerate(self.folds) if case_id in ids)

    def decoder(self, fold: int) -> Decoder:
        """One that was trained without a fold, as `medad_core.training.fitting.cross_fit` trains it."""
        learn = [shown.case for shown in self.own if shown.case.case_id not in self.folds[fold]]
        seed = self.settings.train.seed + 1 + fold
        return train_decoder(learn, self.text, self.settings.train.decoder, seed, self.work / f"decoder-{fold}.pt")

    def grids(self, fold: int, mirrored: bool = False) -> Grids:
        """Grids of the patients of a fold, whom the decoder has not seen."""
        file = self.work / f"grids-{fold}{'-mirrored' * mirrored}.npz"
        if not file.is_file():
            decoder = self.decoder(fold)
            cases = [shown.case for shown in (self.twins if mirrored else self.own)]
            save_grids(
                file, {one.case_id: decode_case(decoder, one) for one in cases if one.case_id in self.folds[fold]}
            )
            log.info("wrote %s", file.name)
        return load_grids(file)

    def lessons(self, fold: int) -> list[Lesson]:
        """The cases of all other folds and their twins."""
        lessons = []
        for other in set(range(len(self.folds))) - {fold}:
            for mirrored, cases in ((False, self.own), (True, self.twins)):
                grids = self.grids(other, mirrored)
                for shown in cases:
                    if shown.case.case_id in grids:
                        lessons.append(Lesson(shown, grids[shown.case.case_id], shown.case.cover(SIZE)))
        return lessons


def begin(data: str, work: Path, encoder: VisionTransformerEncoder, settings: Settings) -> Trial:
    """Read and encode all cases, and deal the folds."""
    cohort = find_cohort(data, by_index(settings.data))
    learned = {name: getattr(settings.train, name) for name in ("first_slice", "last_slice", "context_mm")}
    own, twins = [], []
    for member in cohort.members:
        raw = cohort.case(member, settings.data.modality)
        case = encode_case(raw, settings, encoder, work / "features")
        pictures = read_slices(raw, settings.data.model_copy(update=learned)).pictures
        own.append(Shown(case, case.seen(pictures)))
        twins.append(Shown(case.twin, case.twin.seen(mirror(pictures))))
    text = text_features(load_text_encoder(settings.models.text_encoder), load_sentences())
    cases = [shown.case for shown in own]
    folds = deal_folds(cases, settings.train.folds, settings.data.first_slice, settings.data.last_slice, 0)
    return Trial(own, twins, folds, text, settings, work)


def shrink(windows: np.ndarray) -> Tensor:
    """Windows (B, 3, S, S) uint8 to pictures (B, 3, 126, 126) float32 from 0 to 1."""
    pictures = torch.from_numpy(windows).float() / 255
    return F.interpolate(pictures, size=(SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)


def batches_of(
    lessons: Sequence[Lesson], batch_size: int, seed: int, first: int, with_features: bool
) -> Iterator[tuple[Tensor, ...]]:
    """Grids, pictures, features and covers of the batches from number `first` on, half of them tumour-free.

    Each slice has a gain and a gamma of its own, both from 0.74 to 1.35, because scanners differ.
    """
    flags = [lesson.shown.case.has_tumour for lesson in lessons]
    for number, picks in enumerate(islice(_picks(flags, batch_size, seed), first, None), first):
        rows = [(lessons[case], at) for case, at in picks]
        rng = np.random.default_rng((seed, number))
        gain, gamma = torch.from_numpy(np.exp(rng.uniform(-0.3, 0.3, (2, len(rows), 1, 1, 1)))).float()
        pictures = shrink(np.stack([lesson.shown.windows[at] for lesson, at in rows]))
        some = [lesson.shown.case.features[at] for lesson, at in rows] if with_features else []
        yield (
            torch.from_numpy(np.stack([lesson.grids[at] for lesson, at in rows])).float(),
            (gain * pictures**gamma).clamp(0, 1),
            torch.from_numpy(np.stack(some)).float() if some else torch.zeros(0),
            torch.from_numpy(np.stack([lesson.cover[at] for lesson, at in rows])).float(),
        )


def fit(trial: Trial, name: str, fold: int) -> nn.ModuleDict:
    """An up-sampler, and its decoder where it has one, trained without a fold; nobody chooses among its steps."""
    sees = VARIANTS[name]
    shape = trial.own[0].case.features.shape
    torch.manual_seed(trial.settings.train.seed)
    module = nn.ModuleDict({"head": UpSampler(sees, shape[1], shape[-1])})
    update = {"steps": STEPS, "learning_rate": 3e-3}
    if "decoder" in sees:
        module["decoder"] = Decoder(shape[1], shape[-1], trial.text)
        update = {}
    settings = trial.settings.train.decoder.model_copy(update=update)
    lessons = trial.lessons(fold)

    def loss(batch: tuple[Tensor, ...]) -> Tensor:
        grid, pictures, features, cover = batch
        if "decoder" not in sees:
            return focal_dice_loss(module["head"](grid, pictures, features), cover)
        grid = module["decoder"](features)
        small = F.interpolate(cover.unsqueeze(1), size=LOSS_SIZE, mode="area")[:, 0]
        return focal_dice_loss(grid, small) + focal_dice_loss(module["head"](grid, pictures, features), cover)

    loop = Loop(module, settings, trial.settings.train.seed, CPU, rise=0.1)
    file = trial.work / f"{name}-{fold}.pt"
    loop.resume(file)
    with_features = not set(sees).isdisjoint({"features", "decoder"})
    loop.run(
        lambda first: batches_of(lessons, settings.batch_size, trial.settings.train.seed, first, with_features),
        loss,
        file,
        lambda _: None,
        lambda *_: None,
    )
    return module.eval().requires_grad_(False)


@torch.inference_mode()
def refine(module: nn.ModuleDict, shown: Shown, grids: np.ndarray) -> np.ndarray:
    """The maps of a case as grids with one tap, (N, 1, 126, 126) float16."""
    refined = []
    needed = "decoder" in module or module["head"].mix is not None
    for start in range(0, len(grids), 16):
        part = slice(start, start + 16)
        features = torch.from_numpy(np.array(shown.case.features[part])).float() if needed else torch.zeros(0)
        grid = module["decoder"](features) if "decoder" in module else torch.from_numpy(grids[part]).float()
        refined.append(module["head"](grid, shrink(shown.windows[part]), features).half())
    return torch.cat(refined).numpy()
