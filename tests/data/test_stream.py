"""Laws of the streams: everything once, at any number of ranks and workers; resuming loses and repeats nothing."""

from __future__ import annotations

import json
import logging
import multiprocessing
import random
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut, Recording, SupervisionSegment

from asrkit.data.augment import NoiseConfig
from asrkit.data.index import write_index
from asrkit.data.stream import DataConfig, Stream, StreamConfig, evaluation_batches
from asrkit.errors import AsrkitError
from asrkit.text.units import Units

RATE = 16000
UNITS = Units.characters(["ABCDE "])


def write_set(data: Path, name: str, lengths: list[int], texts: list[str] | None = None, rate: int = RATE) -> None:
    """A prepared set of noise: utterance i of set s is ``s-i``, ``lengths[i]`` samples at ``rate``."""
    folder = data / name
    folder.mkdir(parents=True)
    generator = np.random.default_rng(sum(name.encode()))
    cuts = []
    for number, length in enumerate(lengths):
        path = folder / f"{number}.flac"
        soundfile.write(path, generator.uniform(-0.5, 0.5, length), rate)
        recording = Recording.from_file(path, recording_id=f"{name}-{number}")
        labels = []
        if texts is not None:
            labels = [SupervisionSegment(recording.id, recording.id, 0.0, recording.duration, text=texts[number])]
        cuts.append(MonoCut(recording.id, 0.0, recording.duration, 0, labels, recording=recording))
    write_index(folder, cuts)
    (folder / "set.json").write_text(json.dumps({"name": name, "labelled": texts is not None}))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    lengths = np.random.default_rng(0).integers(1600, 8000, 40).tolist()
    write_set(folder, "train", lengths[:25], [f"AB C{'DE' * (number % 4)}" for number in range(25)])
    write_set(folder, "more", lengths[25:], ["CAB"] * 15)
    write_set(folder, "plain", lengths[:20])
    return folder


def stream_of(data, *, units=UNITS, rank=0, world_size=1, seed=1, workers=0, batch_seconds=1.0, sets=None, **settings):
    names = sets or (["train", "more"] if units else ["plain"])
    config = StreamConfig(sets=names, **{"seconds_per_update": 2.0, **settings})
    data_config = DataConfig(dir=str(data), batch_seconds=batch_seconds, workers=workers)
    return Stream(config, data_config, units, seed, rank, world_size)


def consume(stream, updates):
    """The next updates, each the list of its micro-batches; every one is consumed."""
    given = []
    for micro_batches in islice(stream, updates):
        given.append(micro_batches)
        stream.consumed()
    return given


def ids(updates):
    return [sorted(name for batch in update for name in batch.ids) for update in updates]


def flat(lists):
    return list(chain.from_iterable(lists))


def over_ranks(data, world_size, updates, state=None, **settings):
    """The ids of each update, over all ranks."""
    streams = [stream_of(data, rank=rank, world_size=world_size, **settings) for rank in range(world_size)]
    for stream in streams:
        stream.load_state_dict(state or stream.state_dict())
    shares = [ids(consume(stream, updates)) for stream in streams]
    assert len({tuple(stream.state_dict().items()) for stream in streams}) == 1
    return [sorted(flat(share)) for share in zip(*shares, strict=True)], streams[0].state_dict()


def same(first, second):
    assert (first.ids, first.epoch, first.host_lengths, first.texts) == (
        second.ids,
        second.epoch,
        second.host_lengths,
        second.texts,
    )
    assert torch.equal(first.waves, second.waves)
    assert torch.equal(first.keys, second.keys)
    assert (first.targets is None) == (second.targets is None)
    assert first.targets is None or torch.equal(first.targets, second.targets)


@pytest.mark.parametrize("settings", [{}, {"speed_factors": [0.9, 1.0, 1.1]}, {"units": None, "crop_seconds": 0.2}])
def test_updates_are_the_same_at_any_world_size_and_an_epoch_is_everything_once(data, settings):
    per_epoch = stream_of(data, **settings).updates_per_epoch
    alone, _ = over_ranks(data, 1, 2 * per_epoch, **settings)
    names = sorted(flat(alone[:per_epoch]))
    assert len(names) == len(set(names)) == (20 if "units" in settings else 40)
    assert names == sorted(flat(alone[per_epoch:]))
    assert alone[:per_epoch] != alone[per_epoch:]
    for world_size in (2, 3, 8):
        assert over_ranks(data, world_size, 2 * per_epoch, **settings)[0] == alone


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (8, 2)])
def test_first_and_rest_are_the_whole_also_at_another_world_size(data, before, after):
    per_epoch = stream_of(data).updates_per_epoch
    total = 2 * per_epoch + 1
    whole, end = over_ranks(data, 1, total)
    for done in (0, 1, per_epoch - 1, per_epoch, per_epoch + 2):
        first, state = over_ranks(data, before, done)
        assert state == dict(zip(("epoch", "update"), divmod(done, per_epoch), strict=True))
        rest, state = over_ranks(data, after, total - done, state=json.loads(json.dumps(state)))
        assert first + rest == whole
        assert state == end


@pytest.mark.parametrize("workers", [0, 2])
def test_what_was_given_or_read_ahead_but_not_consumed_comes_again(data, workers):
    stream = stream_of(data, workers=workers)
    expected = consume(stream_of(data), 6)
    consume(stream, 2)
    next(stream)
    next(stream)
    state = stream.state_dict()
    assert state["update"] == 2
    stream.consumed()
    assert stream.state_dict()["update"] == 3
    resumed = stream_of(data, workers=workers)
    resumed.load_state_dict(state)
    stream.close()
    for again, start in ((resumed, 2), (stream, 3)):
        for given, wanted in zip(consume(again, 3), expected[start : start + 3], strict=True):
            for one, other in zip(given, wanted, strict=True):
                same(one, other)
        again.close()


def test_more_cannot_be_consumed_than_was_given(data):
    stream = stream_of(data)
    consume(stream, 1)
    with pytest.raises(RuntimeError, match="no update was given"):
        stream.consumed()


def test_a_state_beyond_a_shortened_epoch_is_its_end(data):
    stream = stream_of(data)
    stream.load_state_dict({"epoch": 3, "update": 10_000})
    assert stream.state_dict() == {"epoch": 4, "update": 0}
    assert stream.epoch == 4
    assert {batch.epoch for batch in next(stream)} == {4}


def test_workers_change_nothing(data, tmp_path):
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).normal(size=4000) * 0.1, RATE)
    noise = {"dir": str(tmp_path), "probability": 0.5}

    def batches(workers, seed=1):
        settings = {"speed_factors": [0.9, 1.1], "noise": NoiseConfig(**noise), "workers": workers, "seed": seed}
        stream = stream_of(data, **settings)
        given = consume(stream, stream.updates_per_epoch + 2)
        stream.close()
        return [batch for update in given for batch in update]

    alone, helped = batches(0), batches(2)
    assert len(alone) == len(helped)
    for one, other in zip(alone, helped, strict=True):
        same(one, other)
    assert [batch.ids for batch in batches(0, seed=2)] != [batch.ids for batch in alone]


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_states_are_left_alone(data, workers):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    stream = stream_of(data, units=None, workers=workers, speed_factors=[0.9, 1.1], crop_seconds=0.2)
    consume(stream, 2)
    stream.close()
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert before[2] == random.getstate()


def test_batches_are_padded_with_zeros_and_carry_their_targets(data):
    stream = stream_of(data, sets=["train"])
    for update in consume(stream, stream.updates_per_epoch):
        for batch in update:
            for row, name in enumerate(batch.ids):
                number = int(name.rpartition("-")[2])
                wave, _ = soundfile.read(data / "train" / f"{number}.flac", dtype="float32")
                length = batch.host_lengths[row]
                assert np.array_equal(batch.waves[row, :length].numpy(), wave)
                assert (batch.waves[row, length:] == 0).all()
                text = f"AB C{'DE' * (number % 4)}"
                assert batch.texts[row] == text
                target = batch.targets[row, : batch.host_target_lengths[row]].tolist()
                assert target == UNITS.encode(text)
                assert (batch.targets[row, len(target) :] == 0).all()
            assert batch.waves.shape[1] == max(batch.host_lengths)
            assert batch.wave_lengths.tolist() == list(batch.host_lengths)
            assert batch.target_lengths.tolist() == list(batch.host_target_lengths)
            assert len(batch.ids) == 1 or batch.waves.numel() <= 1.0 * RATE + 1


@pytest.mark.parametrize("crop", [0.0, 0.2])
def test_the_unlabelled_stream_has_no_targets_and_texts_of_whole_utterances_only(data, crop):
    for update in consume(stream_of(data, units=None, sets=["train"], crop_seconds=crop), 3):
        for batch in update:
            assert batch.targets is batch.target_lengths is None
            assert (batch.texts is None) == (crop > 0)


def crops(data, epochs=1, seed=1, **settings):
    stream = stream_of(data, units=None, crop_seconds=0.2, seed=seed, **settings)
    found = [{} for _ in range(epochs)]
    for update in consume(stream, epochs * stream.updates_per_epoch):
        for batch in update:
            for row, name in enumerate(batch.ids):
                found[batch.epoch][name] = batch.waves[row, : batch.host_lengths[row]].numpy()
    return found


def test_a_crop_is_a_stretch_that_depends_on_seed_epoch_and_utterance_alone(data):
    (first, second), (other,) = crops(data, epochs=2), crops(data, seed=2)
    elsewhere = crops(data, batch_seconds=0.3, seconds_per_update=0.7, bucket_updates=1)[0]
    moved, differs = 0, 0
    for name, crop in first.items():
        wave, _ = soundfile.read(data / "plain" / f"{name.rpartition('-')[2]}.flac", dtype="float32")
        assert len(crop) == min(len(wave), 3200)
        assert any(np.array_equal(crop, wave[at : at + len(crop)]) for at in range(len(wave) - len(crop) + 1))
        assert np.array_equal(crop, elsewhere[name])
        moved += not np.array_equal(crop, second[name])
        differs += not np.array_equal(crop, other[name])
    longer = sum(len(crop) == 3200 for crop in first.values())
    assert moved >= longer - 1 > 5
    assert differs >= longer - 1


def test_crops_after_speed_perturbation_are_exact(data):
    for crop in crops(data, speed_factors=[0.8, 1.25])[0].values():
        assert len(crop) <= 3200
    sped = crops(data, speed_factors=[1.25])[0]
    assert sum(len(crop) == 3200 for crop in sped.values()) > 5


def test_speed_perturbation_never_changes_the_number_of_updates(data):
    stream = stream_of(data, speed_factors=[0.7, 1.4], seconds_per_update=0.3)
    assert {stream.plan(epoch).updates for epoch in range(20)} == {stream.updates_per_epoch}


def test_planning_uses_the_length_of_the_crops(data):
    stream = stream_of(data, units=None, crop_seconds=0.2, batch_seconds=0.6)
    durations = [soundfile.info(data / "plain" / f"{number}.flac").duration for number in range(20)]
    assert stream.seconds_per_epoch == pytest.approx(sum(min(seconds, 0.2) for seconds in durations), rel=1e-4)
    sizes = [len(batch.ids) for update in consume(stream, stream.updates_per_epoch) for batch in update]
    assert sorted(sizes)[len(sizes) // 2] == 3


def test_utterances_outside_the_limits_or_the_alphabet_are_left_out_and_counted_in_one_line(tmp_path, caplog):
    texts = ["AB", "AB", "AB", "A7", "", "CD"]
    write_set(tmp_path, "train", [1600, 8000, 48000, 8000, 8000, 8000], texts)
    with caplog.at_level(logging.INFO, "asrkit.data"):
        stream = stream_of(tmp_path, sets=["train"], min_seconds=0.2, max_seconds=2.0)
    assert sorted(flat(ids(consume(stream, stream.updates_per_epoch)))) == ["train-1", "train-5"]
    (record,) = caplog.records
    message = record.getMessage()
    assert "2 of 6" in message
    assert "1 shorter than 0.2 s, 1 longer than 2 s, 2 without" in message
    with pytest.raises(AsrkitError, match="no usable utterance: 5 shorter"):
        stream_of(tmp_path, sets=["train"], min_seconds=2.5, max_seconds=2.6)


def test_sets_that_cannot_serve_are_one_line_errors(data):
    with pytest.raises(AsrkitError, match="no transcripts"):
        stream_of(data, sets=["plain"])
    with pytest.raises(AsrkitError, match="absent"):
        stream_of(data, sets=["train", "absent"])


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_vanish_are_skipped_and_told_once(tmp_path, caplog, workers):
    write_set(tmp_path, "train", [4000] * 6, ["AB"] * 6)
    stream = stream_of(tmp_path, sets=["train"], workers=workers, seconds_per_update=0.5, batch_seconds=0.5)
    (tmp_path / "train" / "1.flac").unlink()
    (tmp_path / "train" / "4.flac").write_bytes(b"fLaC")
    given = consume(stream, 2 * stream.updates_per_epoch)
    stream.close()
    assert sorted(flat(ids(given))) == sorted(f"train-{number}" for number in (0, 2, 3, 5) * 2)
    assert stream.skipped == 4
    told = sorted(record.args[0].split(":")[0] for record in caplog.records)
    assert told == ["train-1", "train-4"]


def test_an_unreadable_crop_is_told_under_the_utterances_id(tmp_path, caplog):
    write_set(tmp_path, "plain", [8000] * 2)
    stream = stream_of(tmp_path, units=None, crop_seconds=0.2)
    (tmp_path / "plain" / "1.flac").unlink()
    consume(stream, stream.updates_per_epoch)
    assert [record.args[0].split(":")[0] for record in caplog.records] == ["plain-1"]


def test_a_corpus_that_has_gone_away_stops_the_run(tmp_path):
    write_set(tmp_path, "train", [1600] * 5, ["AB"] * 5)
    stream = stream_of(tmp_path, sets=["train"])
    for path in (tmp_path / "train").glob("*.flac"):
        path.unlink()
    with pytest.raises(AsrkitError, match=r"could not be read.*train-"):
        consume(stream, 1000)


@pytest.mark.parametrize(("share", "stops"), [(0.1, True), (0.4, False)])
def test_a_corpus_of_which_too_much_is_gone_stops_the_run(tmp_path, share, stops):
    write_set(tmp_path, "train", [1600] * 60, ["AB"] * 60)
    for number in range(0, 60, 3):
        (tmp_path / "train" / f"{number}.flac").unlink()
    stream = stream_of(tmp_path, sets=["train"])
    stream.data_config.max_unreadable = share
    if stops:
        with pytest.raises(AsrkitError, match=r"2\d of the last \d+ utterances could not be read; train-"):
            consume(stream, 1000)
        assert stream.skipped >= 21
    else:
        given = consume(stream, 10 * stream.updates_per_epoch)
        assert stream.skipped == 200
        assert len(flat(ids(given))) == 400


@pytest.mark.parametrize("workers", [0, 1])
def test_a_rank_may_have_no_share(tmp_path, workers):
    write_set(tmp_path, "train", [1600] * 2, ["AB"] * 2)
    shares = []
    for rank in range(4):
        stream = stream_of(tmp_path, sets=["train"], rank=rank, world_size=4, workers=workers)
        shares.append(ids(consume(stream, 3)))
        stream.close()
    assert [len(share[0]) for share in shares] == [1, 1, 0, 0]
    assert [sorted(flat(update)) for update in zip(*shares, strict=True)] == [["train-0", "train-1"]] * 3


def test_a_dead_worker_costs_nothing_but_time(data, caplog, monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    expected = consume(stream_of(data), 12)
    before = set(multiprocessing.active_children())
    stream = stream_of(data, workers=1)
    given = consume(stream, 1)
    (worker,) = set(multiprocessing.active_children()) - before
    worker.kill()
    worker.join()
    given += consume(stream, 11)
    stream.close()
    assert "a data worker died" in caplog.text
    for update, wanted in zip(given, expected, strict=True):
        for one, other in zip(update, wanted, strict=True):
            same(one, other)


def test_other_rates_reach_the_model_at_its_own(tmp_path):
    write_set(tmp_path, "train", [4000, 2000], ["AB", "AB"], rate=8000)
    (batch,) = next(stream_of(tmp_path, sets=["train"]))
    assert batch.host_lengths == (8000, 4000)


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (3, 0), (1, 2)])
def test_evaluation_gives_each_utterance_once_longest_first(data, world_size, workers):
    config = DataConfig(dir=str(data), batch_seconds=1.0, workers=workers)
    folders = [data / "train", data / "more"]
    shares = [list(evaluation_batches(folders, UNITS, config, rank, world_size)) for rank in range(world_size)]
    batches = [batch for share in shares for batch in share]
    names = [name for batch in batches for name in batch.ids]
    assert sorted(names) == sorted([f"train-{n}" for n in range(25)] + [f"more-{n}" for n in range(15)])
    for share in shares:
        lengths = [length for batch in share for length in batch.host_lengths]
        assert lengths == sorted(lengths, reverse=True)
    for batch in batches:
        assert [UNITS.encode(text) for text in batch.texts] == [
            row[:length].tolist() for row, length in zip(batch.targets, batch.host_target_lengths, strict=True)
        ]
        assert not batch.waves.is_shared()
    again = [b for rank in range(world_size) for b in evaluation_batches(folders, UNITS, config, rank, world_size)]
    for one, other in zip(batches, again, strict=True):
        same(one, other)


def test_evaluation_keeps_texts_that_the_units_cannot_express(tmp_path):
    write_set(tmp_path, "dev", [1600] * 3, ["A7B C", "7", "É"])
    config = DataConfig(dir=str(tmp_path), workers=0)
    (batch,) = evaluation_batches([tmp_path / "dev"], UNITS, config)
    assert batch.texts == ("A7B C", "7", "É")
    assert batch.host_target_lengths == (4, 0, 0)
    assert batch.targets[0].tolist() == UNITS.encode("AB C")


def test_evaluation_leaves_nothing_out_in_silence(tmp_path):
    write_set(tmp_path, "dev", [1600] * 3, ["A", "B", "C"])
    write_set(tmp_path, "plain", [1600] * 3)
    config = DataConfig(dir=str(tmp_path), workers=0)
    (batch,) = evaluation_batches([tmp_path / "plain"], None, config)
    assert batch.texts is batch.targets is None
    with pytest.raises(AsrkitError, match="no transcripts"):
        list(evaluation_batches([tmp_path / "plain"], UNITS, config))
    (tmp_path / "dev" / "1.flac").unlink()
    with pytest.raises(AsrkitError, match="dev-1"):
        list(evaluation_batches([tmp_path / "dev"], None, config))


@pytest.mark.parametrize(
    "values",
    [
        {"seconds_per_update": 0.0},
        {"min_seconds": -1.0},
        {"min_seconds": 3.0, "max_seconds": 2.0},
        {"min_seconds": 3.0, "crop_seconds": 2.0},
        {"speed_factors": [0.0]},
        {"bucket_updates": 0},
    ],
)
def test_impossible_stream_settings_are_refused(values):
    with pytest.raises(AsrkitError, match=next(iter(values))):
        StreamConfig(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"labelled": StreamConfig(crop_seconds=1.0)},
        {"batch_seconds": -1.0},
        {"workers": -1},
        {"prefetch": 0},
        {"max_unreadable": 1.5},
    ],
)
def test_impossible_data_settings_are_refused(values):
    with pytest.raises(AsrkitError, match=f"data.{next(iter(values))}"):
        DataConfig(**values)
