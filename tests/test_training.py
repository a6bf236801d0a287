"""Training: folds, resume, and that a decoder and a converter learn. On drawn features and maps, with the real LLM."""

from __future__ import annotations

import dataclasses
import json
from itertools import islice

import numpy as np
import pytest
import torch
from maps_to_learn import empty_example, maps_of
from side_by_side import losses_of

from medad_core.config import Settings
from medad_core.config.train import ConverterTraining, DecoderTraining
from medad_core.errors import MedadError
from medad_core.llm.engine import llm_folder
from medad_core.llm.prompt import Prompt
from medad_core.llm.transformers_engine import load_llm
from medad_core.models.converter import Converter
from medad_core.models.decoder import render_map
from medad_core.training.converter import ConverterTrainer
from medad_core.training.decoder import _batches, decode_case, train_decoder
from medad_core.training.features import TrainingCase
from medad_core.training.fitting import cross_fit
from medad_core.training.folds import deal_folds
from medad_core.training.loop import CPU, Arithmetic, Loop
from medad_core.training.maps import LabelledMaps, draw
from medad_core.training.pipeline import _check_folds, _work_key


class _Killed(Exception):
    pass


def _raise() -> None:
    raise _Killed


def drawn_case(number: int, normal: int) -> TrainingCase:
    """12 slices; features are noise, shifted along one axis where the tumour is. The first `normal` have no tumour."""
    rng = np.random.default_rng(number)
    features = rng.normal(size=(12, 4, 16, 16, 24)).astype(np.float16)
    masks = np.zeros((12, 64, 64), bool)
    for index in range(normal, 12):
        row, column = rng.integers(2, 12, 2)
        features[index, :, row : row + 3, column : column + 3, 0] += 6
        masks[index, row * 4 : row * 4 + 12, column * 4 : column * 4 + 12] = True
    return TrainingCase(
        f"case_{number}",
        np.arange(60, 72),
        features,
        np.full(masks.shape, 90, np.uint8),
        np.ones(masks.shape, bool),
        masks,
        1.0,
        f"case_{number}",
    )


def drawn_maps(count: int) -> LabelledMaps:
    rng = np.random.default_rng(0)
    return maps_of([draw(empty_example(), index % 2 == 0, rng) for index in range(count)])


def test_folds_hold_every_patient_once_and_spread_those_with_tumour_free_slices():
    cases = [drawn_case(number, normal=3 if number < 4 else 0) for number in range(9)]
    folds = deal_folds(cases, 4, 60, 71, seed=0)
    assert sorted(case_id for fold in folds for case_id in fold) == sorted(case.case_id for case in cases)
    assert all(sum(case_id in {"case_0", "case_1", "case_2", "case_3"} for case_id in fold) == 1 for fold in folds)


@pytest.mark.parametrize("arithmetic", [CPU, Arithmetic(dtype=torch.bfloat16)])
def test_decoder_learns_where_the_tumour_is_in_a_case_it_has_not_seen(arithmetic, tmp_path):
    text = torch.nn.functional.normalize(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    settings = DecoderTraining(steps=60, batch_size=8, learning_rate=3e-3)
    decoder = train_decoder(
        [drawn_case(number, 4) for number in range(3)],
        text,
        settings,
        0,
        tmp_path / "decoder.pt",
        arithmetic=arithmetic,
    )
    assert {tensor.dtype for tensor in decoder.state_dict().values()} == {torch.float32}
    unseen = drawn_case(9, 4)
    drawn = np.stack([render_map(grid, 64, 64) for grid in decode_case(decoder, unseen)])
    assert drawn[unseen.masks].mean() > 0.6
    assert drawn[~unseen.masks].mean() < 0.2


def test_batches_have_mirrored_slices_with_their_masks():
    """All tumours lie on the left; features say which of both a slice is."""
    drawn = drawn_case(0, 4)
    masks = np.zeros_like(drawn.masks)
    masks[4:, 20:32, 4:16] = True
    features = np.zeros_like(drawn.features)
    case = dataclasses.replace(drawn, masks=masks, features=features, mirrored=np.ones_like(features))
    settings = DecoderTraining(batch_size=8)

    def sides(own: TrainingCase) -> set[tuple[float, bool]]:
        found = set()
        for given, shown in islice(_batches([own], settings, 0, 0, "cpu"), 20):
            for one, mask in zip(given, shown, strict=True):
                if mask.any():
                    found.add((float(one.mean()), bool(mask[:, 28:].any())))
        return found

    assert sides(case) == {(0.0, False), (1.0, True)}
    assert sides(dataclasses.replace(case, mirrored=None)) == {(0.0, False)}


def test_same_seed_gives_the_same_decoder_also_after_a_kill(tmp_path):
    text, cases = torch.eye(2, 16), [drawn_case(0, 4), drawn_case(1, 4)]
    settings = DecoderTraining(steps=6, batch_size=3, accumulate=2, checkpoint_every=2)
    whole = train_decoder(cases, text, settings, 5, tmp_path / "whole.pt")

    def kill(steps: int, _) -> None:
        if steps == 4:
            raise _Killed

    with pytest.raises(_Killed):
        train_decoder(cases, text, settings, 5, tmp_path / "part.pt", validate=kill)
    assert torch.load(tmp_path / "part.pt", weights_only=True)["step"] == 2
    resumed = train_decoder(cases, text, settings, 5, tmp_path / "part.pt")
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, rtol=0, atol=0)
    done = train_decoder(
        cases, text, settings, 5, tmp_path / "part.pt", validate=lambda *_: _raise()
    )  # nothing is left to train
    torch.testing.assert_close(done.state_dict(), resumed.state_dict(), rtol=0, atol=0)


def test_a_damaged_checkpoint_costs_its_steps_and_not_the_run(tmp_path, caplog):
    text, cases, settings = torch.eye(2, 16), [drawn_case(0, 4)], DecoderTraining(steps=2, batch_size=2)
    whole = train_decoder(cases, text, settings, 5, tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:500])
    torch.testing.assert_close(
        train_decoder(cases, text, settings, 5, tmp_path / "x.pt").state_dict(), whole.state_dict(), rtol=0, atol=0
    )
    assert "x.pt is damaged" in caplog.text


@pytest.mark.parametrize(
    "size", [1e-8, 1e4], ids=["gradients too small for float16", "gradients that overflow at first"]
)
def test_float16_learns_although_gradients_do_not_fit_it(size, tmp_path):
    torch.manual_seed(0)
    module, batch = torch.nn.Linear(8, 1), torch.randn(16, 8)
    before = module.weight.detach().clone()
    loop = Loop(module, DecoderTraining(steps=40, learning_rate=0.01), 0, Arithmetic(dtype=torch.float16), rise=0.5)
    loop.run(
        lambda _: iter([batch] * 40),
        lambda given: size * module(given).float().square().mean(),
        tmp_path / "x.pt",
        lambda _: None,
        lambda *_: None,
    )
    assert module.weight.isfinite().all() and loop.curve[-1]["loss"] < 0.9 * loop.curve[0]["loss"]
    assert not torch.equal(module.weight, before)


def test_a_checkpoint_of_another_seed_is_not_gone_on_with(tmp_path):
    text, cases, settings = (
        torch.eye(2, 16),
        [drawn_case(0, 4)],
        DecoderTraining(steps=4, batch_size=2, checkpoint_every=2),
    )
    for seed in (1, 2):
        with pytest.raises(_Killed):
            train_decoder(
                cases,
                text,
                settings,
                seed,
                tmp_path / "part.pt",
                validate=lambda steps, _: _raise() if steps == 4 else None,
            )
    given = train_decoder(cases, text, settings, 3, tmp_path / "part.pt")
    expected = train_decoder(cases, text, settings, 3, tmp_path / "none.pt")
    torch.testing.assert_close(
        given.state_dict()["projections.0.weight"], expected.state_dict()["projections.0.weight"], rtol=0, atol=0
    )


def test_a_step_of_two_batches_is_the_step_of_their_mean_loss(tmp_path):
    def moved(settings: DecoderTraining, batches: list) -> torch.Tensor:
        module = torch.nn.Linear(3, 1)
        torch.nn.init.ones_(module.weight)
        loop = Loop(module, settings, 0, CPU, rise=0.5)
        loop.run(
            lambda first: iter(batches[first:]),
            lambda batch: module(batch).square().mean(),
            tmp_path / "x.pt",
            lambda _: None,
            lambda *_: None,
        )
        return module.weight.detach()

    one, two = torch.eye(3)[:2], torch.eye(3)[1:]
    summed = moved(DecoderTraining(steps=2, accumulate=2), [one, two, two, one])
    torch.testing.assert_close(summed, moved(DecoderTraining(steps=2), [torch.cat([one, two])] * 2))
    assert not torch.allclose(summed, torch.ones(1, 3))


def test_a_loss_that_is_no_number_stops_with_what_to_lower(tmp_path):
    with pytest.raises(MedadError, match="lower learning_rate"):
        train_decoder(
            [drawn_case(0, 4)],
            torch.full((2, 16), torch.nan),
            DecoderTraining(steps=2, batch_size=2),
            0,
            tmp_path / "x.pt",
        )


def test_decoders_stop_where_patients_held_out_fare_best(tmp_path):
    text, cases = (
        torch.nn.functional.normalize(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)), dim=1),
        [drawn_case(number, 4) for number in range(4)],
    )
    decoder = DecoderTraining(
        steps=30, batch_size=4, learning_rate=0.3, checkpoint_every=5
    )  # a rate at which more steps are not always better
    settings, folds = (
        Settings().train.model_copy(update={"decoder": decoder}),
        [["case_0", "case_1"], ["case_2", "case_3"]],
    )
    fitted = cross_fit(cases, folds, text, settings, tmp_path, CPU, lambda *_: None)
    losses = [json.loads((tmp_path / f"fold-{number}.json").read_text()) for number in range(2)]
    mean = {int(steps): (losses[0][steps] + losses[1][steps]) / 2 for steps in losses[0]}
    assert sorted(mean) == [5, 10, 15, 20, 25, 30] and mean[fitted.steps] == min(mean.values()) < max(mean.values())
    again = train_decoder(cases[2:], text, decoder, settings.seed + 1, tmp_path / "again.pt", until=fitted.steps)
    np.testing.assert_array_equal(decode_case(again, cases[0]), fitted.grids["case_0"])
    all_steps = settings.model_copy(update={"decoder": decoder.model_copy(update={"choose_steps": False})})
    (tmp_path / "all").mkdir()
    assert cross_fit(cases, folds, text, all_steps, tmp_path / "all", CPU, lambda *_: None).steps == 30


@pytest.fixture(scope="module")
def llm():
    prompt = Prompt(llm_folder("smollm2-135m"))
    return prompt, load_llm(prompt.folder)


def trainer(llm, **changes) -> ConverterTrainer:
    prompt, model = llm
    torch.manual_seed(0)
    converter = Converter(torch.randn(4, 384), prompt.width, 0.136)
    settings = ConverterTraining(
        questions=("presence", "side"),
        warm_up_steps=5,
        synthetic_steps=2,
        real_steps=2,
        batch_size=4,
        checkpoint_every=1,
    )
    return ConverterTrainer(converter, model, prompt, settings.model_copy(update=changes), seed=3)


def test_converter_training_resumed_after_a_kill_ends_like_one_that_was_not_killed(llm, tmp_path):
    maps, unseen = drawn_maps(16), drawn_maps(4)
    whole = trainer(llm)
    expected = whole.fit(maps, unseen, tmp_path / "whole.pt").state_dict()

    def stop(step: int, _: int) -> None:
        if step == 2:
            raise _Killed

    with pytest.raises(_Killed):
        trainer(llm).fit(maps, unseen, tmp_path / "part.pt", stop)
    resumed = trainer(llm)
    given = resumed.fit(maps, unseen, tmp_path / "part.pt").state_dict()
    assert [point["loss"] for point in resumed.loop.curve] == pytest.approx(
        [point["loss"] for point in whole.loop.curve], rel=1e-4
    )
    for name, tensor in expected.items():
        torch.testing.assert_close(given[name], tensor, rtol=1e-4, atol=1e-5)


def test_converters_that_learn_side_by_side_have_the_loss_and_the_gradients_of_each_alone(llm):
    trainers = [trainer(llm), trainer(llm, normal_share=0.25)]
    with torch.no_grad():
        trainers[1].converter.scale.scale.mul_(1.5)  # two converters with the same weights could be exchanged
    batches = [one._batch(drawn_maps(8), 3 + number) for number, one in enumerate(trainers)]

    def gradients() -> list[torch.Tensor]:
        taken = [one.converter.project.weight.grad.clone() for one in trainers]
        for one in trainers:
            one.converter.zero_grad()
        return taken

    together = losses_of(trainers, batches, llm[1])
    together.sum().backward()
    of_together = gradients()
    alone = torch.stack([one._loss(batch) for one, batch in zip(trainers, batches, strict=True)])
    alone.sum().backward()
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    for given, expected in zip(of_together, gradients(), strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))


def test_loss_reaches_map_and_knowledge_tokens_and_leaves_the_llm_alone(llm):
    run = trainer(llm)
    before = next(llm[1].parameters()).clone()
    run.loop._step([run._batch(drawn_maps(8), 0)], run._loss)
    for name, parameter in run.converter.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert torch.equal(before, next(llm[1].parameters()))


def test_a_fold_without_which_one_kind_of_slice_is_missing_stops_before_any_training():
    cases = [drawn_case(0, normal=4), drawn_case(1, normal=0), drawn_case(2, normal=0)]
    with pytest.raises(MedadError, match=r"without fold 0 \(case_0\) no tumour-free slices"):
        _check_folds(cases, [["case_0"], ["case_1"], ["case_2"]], Settings())


def test_visits_of_one_patient_are_held_out_together():
    cases = [
        dataclasses.replace(drawn_case(number, 3), case_id=f"P{number // 2}-{number % 2}", patient=f"P{number // 2}")
        for number in range(8)
    ]
    for fold in deal_folds(cases, 4, 60, 71, seed=0):
        assert len(fold) == 2 and fold[0][:2] == fold[1][:2]


def test_weights_in_the_making_are_of_their_folds_images_and_modality(tmp_path):
    def stored(number: int) -> TrainingCase:
        case = drawn_case(number, 4)
        np.save(tmp_path / f"{number}.npy", case.features)
        return dataclasses.replace(case, features=np.load(tmp_path / f"{number}.npy", mmap_mode="r"))

    cases, settings = [stored(0), stored(1)], Settings()
    key = _work_key(settings, cases, [["case_0"], ["case_1"]], {})
    assert key == _work_key(settings, cases, [["case_0"], ["case_1"]], {})
    assert key != _work_key(settings, cases, [["case_1"], ["case_0"]], {})
    other = dataclasses.replace(cases[1], features=stored(2).features)
    assert key != _work_key(settings, [cases[0], other], [["case_0"], ["case_1"]], {})
    assert key != _work_key(
        settings.model_copy(update={"data": settings.data.model_copy(update={"modality": "t2"})}),
        cases,
        [["case_0"], ["case_1"]],
        {},
    )
