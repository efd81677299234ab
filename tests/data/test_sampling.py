"""Soft random sampling: how much is heard how often, the same at any world size and after any stop; and limits in hours."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_stream import consume, crops, ids, over_ranks, same, stream_of, write_set

from asrkit import cli
from asrkit.data.prepare import PrepareConfig, prepare_table
from asrkit.data.sampling import Draws, Everything
from asrkit.data.sharding import ShardConfig
from asrkit.data.stream import DataConfig, Stream, StreamConfig
from asrkit.errors import AsrkitError
from asrkit.randomness import copy_keys, utterance_keys

SOFT = {"sampling": "soft_random", "ratio": 0.8}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    lengths = np.random.default_rng(0).integers(1600, 8000, 40).tolist()
    write_set(folder, "train", lengths[:25], [f"AB C{'DE' * (number % 4)}" for number in range(25)])
    write_set(folder, "more", lengths[25:], ["CAB"] * 15)
    write_set(folder, "plain", lengths[:20])
    return folder


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.5, 1.0, 2.0])
def test_the_share_heard_in_an_epoch_is_one_minus_exp_minus_r(ratio):
    count, epochs = 5000, 40
    shares = []
    for epoch in range(epochs):
        draws = Draws(count, ratio, seed=7, epoch=epoch)
        assert len(draws) == round(ratio * count)
        shares.append(len(set(draws.places(np.arange(len(draws))).tolist())) / count)
    # Occupied cells after n throws: variance about N (e^-r - (1 + r) e^-2r).
    deviation = math.sqrt((math.exp(-ratio) - (1 + ratio) * math.exp(-2 * ratio)) / count / epochs)
    assert abs(np.mean(shares) - (1 - math.exp(-ratio))) < 4 * deviation + 1 / count


@pytest.mark.parametrize(("ratio", "epochs"), [(0.1, 12), (0.5, 6), (1.0, 3)])
def test_over_epochs_an_utterance_is_heard_poisson_many_times(ratio, epochs):
    count = 20_000
    heard = np.zeros(count, dtype=np.int64)
    for epoch in range(epochs):
        draws = Draws(count, ratio, seed=3, epoch=epoch, salt=1)
        heard += np.bincount(draws.places(np.arange(len(draws))), minlength=count)
    rate = ratio * epochs
    assert heard.sum() == round(ratio * count) * epochs
    # Chi-square over 0, 1, … and the rest, as many classes as hold twenty or more.
    most = 0
    while count * rate ** (most + 1) * math.exp(-rate) / math.factorial(most + 1) > 20 or most < rate:
        most += 1
    wanted = [rate**k * math.exp(-rate) / math.factorial(k) for k in range(most)]
    wanted.append(1 - sum(wanted))
    found = [float((heard == k).sum()) for k in range(most)]
    found.append(count - sum(found))
    statistic = sum((f - count * w) ** 2 / (count * w) for f, w in zip(found, wanted, strict=True))
    # Mean `most` (degrees of freedom), variance twice that; one more is lost, since the sum is fixed.
    assert statistic < most + 4 * math.sqrt(2 * most)
    # Two epochs have nothing to do with each other.
    one, other = (np.bincount(Draws(count, 1.0, seed=3, epoch=e)._places, minlength=count) for e in (0, 1))
    assert abs(np.corrcoef(one, other)[0, 1]) < 4 / math.sqrt(count)


@given(st.integers(1, 50), st.floats(0.02, 3.0), st.integers(-3, 3), st.integers(0, 5), st.integers(0, 2))
def test_draws_of_an_utterance_are_numbered_from_nought(count, ratio, seed, epoch, salt):
    draws = Draws(count, ratio, seed=seed, epoch=epoch, salt=salt)
    numbers = np.random.default_rng(0).permutation(len(draws))
    places, copies = draws.places(numbers), draws.copies(numbers)
    assert ((places >= 0) & (places < count)).all()
    pairs = sorted(zip(places.tolist(), copies.tolist(), strict=True))
    assert pairs == sorted((place, n) for place, times in Counter(places.tolist()).items() for n in range(times))
    assert (Draws(count, ratio, seed=seed, epoch=epoch, salt=salt).places(numbers) == places).all()


def test_draws_differ_by_seed_epoch_and_salt():
    def drawn(**changes):
        return tuple(Draws(100, 1.0, **{"seed": 1, "epoch": 0, "salt": 0, **changes})._places.tolist())

    kinds = [drawn(), drawn(seed=2), drawn(seed=-1), drawn(epoch=1), drawn(salt=1)]
    assert len(set(kinds)) == len(kinds)


def test_everything_is_each_utterance_as_it_is():
    numbers = np.arange(5)
    assert (Everything(5).places(numbers) == numbers).all()
    assert not Everything(5).copies(numbers).any()


def test_a_further_draw_has_keys_of_its_own():
    keys = utterance_keys([f"u{number}" for number in range(500)])
    of_copies = [copy_keys(keys, torch.full((500,), copy)) for copy in range(4)]
    assert torch.equal(of_copies[0], keys)
    assert len(set(torch.cat(of_copies).tolist())) == 2000


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bucket_updates": 1},
        {"speed_factors": [0.9, 1.0, 1.1]},
        {"units": None, "crop_seconds": 0.2},
        {"hours": 0.002},
    ],
)
def test_updates_are_the_same_at_any_world_size(data, settings):
    settings = {**SOFT, **settings}
    per_epoch = stream_of(data, **settings).updates_per_epoch
    alone, end = over_ranks(data, 1, 3 * per_epoch, **settings)
    assert end == {"epoch": 3, "update": 0}
    stream = stream_of(data, **settings)
    for epoch in range(3):
        heard = [name for update in alone[epoch * per_epoch : (epoch + 1) * per_epoch] for name in update]
        assert len(heard) == len(stream.items(epoch)) == round(0.8 * len(stream))
    assert alone[:per_epoch] != alone[per_epoch : 2 * per_epoch]
    for world_size in (2, 3, 8):
        assert over_ranks(data, world_size, 3 * per_epoch, **settings) == (alone, end)


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (8, 2)])
def test_first_and_rest_are_the_whole_also_at_another_world_size(data, before, after):
    per_epoch = stream_of(data, **SOFT).updates_per_epoch
    total = 2 * per_epoch + 1
    whole, end = over_ranks(data, 1, total, **SOFT)
    for done in (0, 1, per_epoch - 1, per_epoch, per_epoch + 2):
        first, state = over_ranks(data, before, done, **SOFT)
        rest, state = over_ranks(data, after, total - done, state=json.loads(json.dumps(state)), **SOFT)
        assert first + rest == whole
        assert state == end


def test_what_a_draw_becomes_depends_on_nothing_but_its_number(data):
    """Two draws of an utterance differ in crop and keys; each is the same in other batches, by workers, and after a stop."""

    def samples(skip=0, **settings):
        stream = stream_of(data, units=None, crop_seconds=0.15, **{"sampling": "soft_random", "ratio": 2.0, **settings})
        per_epoch = stream.updates_per_epoch
        if skip:
            stream.load_state_dict({"epoch": 0, "update": skip})
        found = {}
        for update in consume(stream, per_epoch - skip):
            for batch in update:
                for row, key in enumerate(batch.keys.tolist()):
                    found[batch.ids[row], key] = batch.waves[row, : batch.host_lengths[row]].numpy().tobytes()
        stream.close()
        return found

    whole = samples()
    assert len(whole) == 40, "no draw has another one's keys"
    by_name = {}
    for (name, _), wave in whole.items():
        by_name.setdefault(name, []).append(wave)
    repeated = [waves for waves in by_name.values() if len(waves) > 1 and len(waves[0]) == 4 * 2400]
    assert len(repeated) > 3
    assert all(len(set(waves)) == len(waves) for waves in repeated)
    for changes in ({"batch_seconds": 0.3, "bucket_updates": 1}, {"seconds_per_update": 0.7}, {"workers": 1}):
        assert samples(**changes) == whole
    assert samples(skip=2).items() <= whole.items()


def test_the_first_draw_is_the_utterance_as_it_is_without_sampling(data):
    plain = crops(data)[0]
    stream = stream_of(data, units=None, crop_seconds=0.2, sampling="soft_random", ratio=1.0)
    own = dict(zip(plain, utterance_keys(list(plain)).tolist(), strict=True))
    heard, firsts = set(), set()
    for update in consume(stream, stream.updates_per_epoch):
        for batch in update:
            heard.update(batch.ids)
            for row, (name, key) in enumerate(zip(batch.ids, batch.keys.tolist(), strict=True)):
                if key == own[name]:
                    firsts.add(name)
                    assert np.array_equal(batch.waves[row, : batch.host_lengths[row]].numpy(), plain[name])
    assert firsts == heard


@pytest.mark.parametrize("ratio", [0.01, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("speeds", [[], [0.7, 1.4]])
def test_an_epoch_has_always_as_many_updates(data, ratio, speeds):
    stream = stream_of(data, sampling="soft_random", ratio=ratio, speed_factors=speeds, seconds_per_update=0.6)
    assert {stream.plan(epoch).updates for epoch in range(20)} == {stream.updates_per_epoch}
    assert stream.seconds_per_epoch == pytest.approx(
        stream_of(data, speed_factors=speeds).seconds_per_epoch * max(1, round(ratio * 40)) / 40
    )


def test_shards_give_the_same_draws(tmp_path: Path, data: Path) -> None:
    lines = ["id\taudio\ttext"]
    lines += [f"u{number}\t{data / 'train' / f'{number}.flac'}\tAB" for number in range(20)]
    (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
    prepare_table([tmp_path / "train.tsv"], tmp_path / "files", PrepareConfig(workers=1))
    sharded = PrepareConfig(workers=1, shards=ShardConfig("", hours=0.0005))
    prepare_table([tmp_path / "train.tsv"], tmp_path / "shards", sharded)
    given = []
    for name in ("files", "shards"):
        config = StreamConfig(sets=["train"], seconds_per_update=1.0, crop_seconds=0.2, **SOFT)
        stream = Stream(config, DataConfig(dir=str(tmp_path / name), batch_seconds=1.0, workers=0), None, 1)
        given.append(consume(stream, 2 * stream.updates_per_epoch))
    for one, other in zip(*given, strict=True):
        for batch, wanted in zip(one, other, strict=True):
            same(batch, wanted)


def test_a_pass_over_a_sampled_stream_is_a_sampled_epoch(data):
    whole, half = (
        stream_of(data, seconds_per_update=0.5),
        stream_of(data, seconds_per_update=0.5, sampling="soft_random", ratio=0.5),
    )
    assert half.updates_per_epoch == pytest.approx(whole.updates_per_epoch / 2, abs=1)
    consume(half, half.updates_per_epoch)
    assert half.epoch == 1


def test_hours_choose_nested_samples_of_about_as_much(data):
    total = stream_of(data).seconds_per_epoch
    chosen = []
    for share in (0.1, 0.3, 0.6, 0.9):
        stream = stream_of(data, hours=share * total / 3600)
        assert share * total - 0.5 < stream.seconds_per_epoch <= share * total
        chosen.append({name for update in ids(consume(stream, stream.updates_per_epoch)) for name in update})
    assert all(small < large for small, large in pairwise(chosen))
    elsewhere = stream_of(data, hours=0.6 * total / 3600, seed=5, batch_seconds=0.4)
    assert {name for u in ids(consume(elsewhere, elsewhere.updates_per_epoch)) for name in u} == chosen[2]


def test_hours_come_after_other_limits_and_are_told(data, caplog):
    stream = stream_of(data, min_seconds=0.3, hours=0.001)
    assert 3.1 < stream.seconds_per_epoch <= 3.6
    assert "beyond 0.001 h" in caplog.text
    assert len(stream_of(data, hours=5.0)) == 40
    assert "no more than 5 h of usable speech" in caplog.text
    assert len(stream_of(data, hours=1e-9)) == 1


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"sampling": "soft"}, "unknown sampling 'soft'"),
        ({"sampling": "soft_random", "ratio": 0.0}, "ratio is 0"),
        ({"ratio": 0.5}, "ratio is 0.5, but sampling is all"),
        ({"hours": -1.0}, "hours"),
    ],
)
def test_impossible_settings_are_refused(values, says):
    with pytest.raises(AsrkitError, match=says):
        StreamConfig(**values)


def test_the_settings_are_documented(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help-config", "finetune"]) == 0
    said = capsys.readouterr().out
    for key in ("sampling", "ratio", "hours"):
        assert f"data.labelled.{key} (" in said
        assert f"data.unlabelled.{key} (" in said
