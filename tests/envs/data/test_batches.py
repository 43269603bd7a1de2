import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from envs.data.batches import BATCHES, ProtocolConfig, last_arrived, make_batches
from envs.data.episodes import TYPES, Episodes
from envs.data.order import best_episodes

CPU = torch.device("cpu")


def make_episodes(lengths: list[int]) -> Episodes:
    """Episodes whose observation is (episode, step), so that every row can be told."""
    steps = sum(lengths)
    rng = np.random.default_rng(0)
    return Episodes(
        observations=np.array([(e, t) for e, n in enumerate(lengths) for t in range(n)]),
        actions=rng.uniform(-1, 1, (steps, 2)),
        rewards=rng.normal(size=steps),
        terminations=np.zeros(steps, bool),
        truncations=np.zeros(steps, bool),
        lengths=lengths,
        action_low=-np.ones(2),
        action_high=np.ones(2),
        dataset_id="test",
        environment_id="Hopper-v5",
    )


def make(
    name: str, lengths: list[int], batch_steps: int, context_length: int, seed: int = 0, **others
):
    episodes = make_episodes(lengths)
    config = ProtocolConfig(name, batch_steps, context_length, **others)
    return episodes, make_batches(episodes, config, seed=seed, device=CPU)


def rows(batch: dict[str, torch.Tensor]):
    """The (episode, step) pairs of each row's real steps."""
    for observations, mask in zip(batch["observations"], batch["mask"], strict=True):
        yield [tuple(pair) for pair in observations[mask].long().tolist()]


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(BATCHES)),
    lengths=st.lists(st.integers(1, 15), min_size=1, max_size=6),
    context_length=st.integers(1, 12),
    n_rows=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_every_batch_is_made_of_true_pieces_of_the_data(
    name, lengths, context_length, n_rows, seed
):
    episodes, batches = make(name, lengths, n_rows * context_length, context_length, seed)
    for _ in range(5):
        batch = batches.next()
        assert batch["mask"][:, 0].all()
        for row, (resets, mask) in zip(
            rows(batch), zip(batch["resets"], batch["mask"], strict=True), strict=True
        ):
            for position in range(1, len(row)):
                (episode, step), (last_episode, last_step) = row[position], row[position - 1]
                if resets[position]:
                    assert step == 0 and last_step == lengths[last_episode] - 1
                else:
                    assert (episode, step) == (last_episode, last_step + 1)
            # Padding follows the real steps.
            assert mask.tolist() == sorted(mask.tolist(), reverse=True)
        index = (
            episodes.starts[batch["observations"][..., 0].long()]
            + batch["observations"][..., 1].long().numpy()
        )
        np.testing.assert_array_equal(batch["timesteps"], batch["observations"][..., 1].long())
        for key in ("actions", "returns_to_go"):
            np.testing.assert_array_equal(batch[key].numpy(), getattr(episodes, key)[index])


def test_lost_observations_by_hand():
    draws = np.random.default_rng(np.random.SeedSequence(3, spawn_key=(1,))).random(10)
    assert (draws < 0.6).astype(int).tolist() == [1, 0, 1, 0, 0, 1, 1, 1, 1, 1]
    # Episodes of 5, 1 and 4 steps; the first observation of each arrives all the same.
    found = last_arrived(np.array([0, 5, 6]), np.array([5, 1, 4]), 0.6, seed=3)
    assert found.tolist() == [0, 1, 1, 3, 4, 5, 6, 6, 6, 6]


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(BATCHES)),
    lengths=st.lists(st.integers(1, 15), min_size=1, max_size=6),
    chosen=st.sets(st.integers(0, 5)),
    loss=st.sampled_from([0.1, 0.5, 0.9]),
    seed=st.integers(0, 99),
)
def test_a_lost_observation_is_the_last_that_arrived_in_its_episode(
    name, lengths, chosen, loss, seed
):
    episodes = make_episodes(lengths)
    selection = episodes.select([e for e in chosen if e < len(lengths)] or [0])
    config = ProtocolConfig(name, 32, 8)
    lossy = make_batches(selection, config, seed=seed, device=CPU, observation_loss=loss)
    again = make_batches(selection, config, seed=seed, device=CPU, observation_loss=loss)
    whole = make_batches(selection, config, seed=seed, device=CPU)
    known: dict[tuple[int, int], int] = {}
    for _ in range(5):
        seen, real = lossy.next(), whole.next()
        assert torch.equal(seen["observations"], again.next()["observations"])
        # Nothing else is another: neither the order of the data nor the other arrays.
        assert all(torch.equal(seen[k], real[k]) for k in real if k != "observations")
        steps, arrived = real["observations"].long(), seen["observations"].long()
        assert torch.equal(steps[..., 0], arrived[..., 0])  # of the same episode
        for (episode, step), (_, last) in zip(
            steps.flatten(0, 1).tolist(), arrived.flatten(0, 1).tolist(), strict=True
        ):
            assert last == known.setdefault((episode, step), last)  # in every batch the same
    for (episode, step), last in known.items():
        assert last in (step, known.get((episode, step - 1), last)) and last <= step
        assert step > 0 or last == 0


def test_observations_are_lost_as_often_as_asked():
    lengths = np.full(2000, 50)
    arrived = last_arrived(np.cumsum(lengths) - lengths, lengths, 0.2, seed=0)
    lost = (arrived != np.arange(100_000)).reshape(2000, 50)
    assert not lost[:, 0].any()
    assert lost[:, 1:].mean() == pytest.approx(0.2, abs=0.005)
    twice = (lost[:, 1:-1] & lost[:, 2:]).mean()
    assert twice == pytest.approx(0.04, abs=0.003)  # one after the other: independent


def test_streams_go_on_where_they_ended_and_enter_every_episode():
    lengths = [7, 3, 5, 1]
    config = ProtocolConfig("streamed", 8, 4, restart=0.0)
    batches = make_batches(make_episodes(lengths), config, seed=0, device=CPU)
    history = [[], []]
    firsts = [[], []]
    for _ in range(40):
        batch = batches.next()
        for i, row in enumerate(rows(batch)):
            history[i] += row
            firsts[i] += batch["resets"][i].tolist()
    for row, first in zip(history, firsts, strict=True):
        assert first[0]
        for before, now, begins in zip(row[:-1], row[1:], first[1:], strict=True):
            assert begins == (now[1] == 0)
            if not begins:
                assert now == (before[0], before[1] + 1)
            else:
                assert before[1] == lengths[before[0]] - 1
    seen = {episode for row in history for episode, _ in row}
    assert seen == {0, 1, 2, 3}


def test_pieces_of_streams_restart_as_often_as_asked_and_go_on_in_the_data():
    config = ProtocolConfig("streamed", 80, 4, restart=0.3)
    batches = make_batches(make_episodes([10_000]), config, seed=0, device=CPU)
    batches.next()
    restarts, last = 0, None
    for _ in range(100):
        batch = batches.next()
        resets, steps = batch["resets"], batch["observations"][..., 1].long()
        episode_begins = steps == 0
        restarts += int((resets & ~episode_begins)[:, 0].sum())
        assert torch.equal(resets[:, 1:], episode_begins[:, 1:])
        if last is not None:
            assert torch.equal(steps[:, 0], (last + 1) % 10_000)
        last = steps[:, -1]
    assert abs(restarts / 2000 - 0.3) < 5 * (0.3 * 0.7 / 2000) ** 0.5
    with pytest.raises(UserError, match=r"protocol\.restart is 1\.5; it must be"):
        ProtocolConfig("streamed", restart=1.5)


def test_whole_episodes_come_whole_and_equally_often():
    lengths = [7, 3, 5, 1]
    _, batches = make("whole_episodes", lengths, 9, 4, best_share=0.0)
    counts = np.zeros(4)
    for _ in range(200):
        batch = batches.next()
        (row,) = rows(batch)
        assert len(row) >= 9
        assert bool(batch["mask"].all())
        begins = [i for i, first in enumerate(batch["resets"][0].tolist()) if first]
        for start, end in zip(begins, [*begins[1:], len(row)], strict=True):
            episode = row[start][0]
            assert row[start:end] == [(episode, t) for t in range(lengths[episode])]
            counts[episode] += 1
    assert counts.max() - counts.min() <= 1 + 1  # each order is used up before the next begins


@pytest.mark.parametrize("name", sorted(BATCHES))
def test_every_step_is_seen_equally_often(name):
    lengths = [30, 2, 11, 7, 20]
    _, batches = make(name, lengths, 60, 6, best_share=0.0)
    counts = {(e, t): 0 for e, n in enumerate(lengths) for t in range(n)}
    for _ in range(4000):
        for row in rows(batches.next()):
            for pair in row:
                counts[pair] += 1
    share = np.array(list(counts.values())) / np.mean(list(counts.values()))
    assert share.min() > 0.93 and share.max() < 1.07, share


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("name", sorted(BATCHES))
def test_the_best_tenth_has_its_share_of_the_steps(name, share):
    lengths = [30, 2, 11, 7, 20, 9, 25, 3, 14, 6, 18, 22, 5, 16, 12]  # the best two are drawn more
    episodes, batches = make(name, lengths, 60, 6, best_share=share)
    best = np.argsort(episodes.returns)[-2:]
    counts = {(e, t): 0 for e, n in enumerate(lengths) for t in range(n)}
    for _ in range(6000):
        for row in rows(batches.next()):
            for pair in row:
                counts[pair] += 1
    others = [n for (e, _), n in counts.items() if e not in best]
    favoured = [n for (e, _), n in counts.items() if e in best]
    # Drawn from all episodes, a step of the best is there as often as any other.
    uniform = (1 - share) * sum(counts.values()) / len(counts)
    extra = share * sum(counts.values()) / len(favoured)
    assert np.mean(favoured) == pytest.approx(uniform + extra, rel=0.03)
    assert favoured == pytest.approx([uniform + extra] * len(favoured), rel=0.07)
    assert others == pytest.approx([uniform] * len(others), rel=0.12)


@pytest.mark.parametrize("name", sorted(BATCHES))
def test_batches_of_a_selection_are_those_of_its_copy(name):
    lengths = [9, 4, 13, 6, 2]
    selection = make_episodes(lengths).select(np.array([3, 1, 4]))
    copy = Episodes(
        *(np.concatenate([getattr(selection, n)[b:e] for b, e in selection.spans]) for n in TYPES),
        lengths=selection.lengths,
        action_low=selection.action_low,
        action_high=selection.action_high,
        dataset_id="copy",
    )
    config, others = ProtocolConfig(name, 20, 5), {"seed": 0, "device": CPU}
    ours, theirs = (
        make_batches(e, config, observation_loss=0.3, **others) for e in (selection, copy)
    )
    for _ in range(20):
        batch = ours.next()
        for key, value in theirs.next().items():
            assert torch.equal(batch[key], value), key


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(sorted(BATCHES)),
    lengths=st.lists(st.integers(1, 15), min_size=2, max_size=6),
    seed=st.integers(0, 99),
)
def test_a_number_of_each_step_comes_with_its_step(name, lengths, seed):
    episodes = make_episodes(lengths)
    numbers = 100 * episodes.observations[:, 0] + episodes.observations[:, 1]
    selection = episodes.select(np.arange(1, len(lengths)))
    config, per_step = ProtocolConfig(name, 20, 5), {"numbers": numbers}
    batches = make_batches(selection, config, seed=seed, device=CPU, per_step=per_step)
    for _ in range(5):
        batch = batches.next()
        wanted = 100 * batch["observations"][..., 0] + batch["observations"][..., 1]
        assert torch.equal(batch["numbers"], wanted)


def test_only_the_selection_is_copied_to_a_device():
    episodes = make_episodes([9, 4, 13])
    config = ProtocolConfig("windowed", 20, 5)
    meta = torch.device("meta")
    batches = make_batches(episodes.select(np.array([0, 2])), config, seed=0, device=meta)
    assert batches.data["observations"].shape == (22, 2)
    np.testing.assert_array_equal(batches.starts, [0, 9])
    on_cpu = make_batches(episodes.select(np.array([0, 2])), config, seed=0, device=CPU)
    shared = on_cpu.data["observations"].numpy()
    assert np.shares_memory(shared, episodes.observations)


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("name", sorted(BATCHES))
def test_the_position_can_be_saved_and_taken_back(name, share, tmp_path):
    lengths = [9, 4, 13, 6]
    _, batches = make(name, lengths, 12, 5, best_share=share)
    for _ in range(7):
        batches.next()
    torch.save(batches.state_dict(), tmp_path / "position.pt")
    expected = [batches.next() for _ in range(9)]
    _, other = make(name, lengths, 12, 5, seed=77, best_share=share)
    other.load_state_dict(torch.load(tmp_path / "position.pt", weights_only=True))
    for batch in expected:
        for key, value in other.next().items():
            assert torch.equal(value, batch[key])


def test_settings_that_make_no_batch_are_refused():
    with pytest.raises(UserError, match="'packed' does not exist; there are: whole_ep"):
        ProtocolConfig("packed")
    with pytest.raises(UserError, match=r"protocol\.batch_steps is 10, less than one row"):
        ProtocolConfig("streamed", 10, 20)
    with pytest.raises(UserError, match=r"protocol\.context_length is 0"):
        ProtocolConfig("windowed", 10, 0)
    for restart in (-0.1, 1.5, float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"protocol\.restart is"):
            ProtocolConfig(restart=restart)
    with pytest.raises(UserError, match=r"batch_steps=10{12} takes at least .* are free"):
        ProtocolConfig(batch_steps=10**12)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("name", sorted(BATCHES))
def test_the_shares_of_several_processes_make_up_the_batch_of_one(name, ranks):
    episodes = make_episodes([9, 4, 13, 6])
    config = ProtocolConfig(name, 35, 5)  # seven rows, which neither two nor three share equally
    others = {"seed": 0, "device": CPU, "observation_loss": 0.3}
    whole = make_batches(episodes, config, **others)
    shares = [
        make_batches(episodes, config, rank=rank, ranks=ranks, **others) for rank in range(ranks)
    ]
    for _ in range(9):
        batch, parts = whole.next(), [share.next() for share in shares]
        assert all(part["mask"].any() for part in parts)
        if name == "whole_episodes":  # one row: its episodes are dealt out
            of_parts = [pair for part in parts for pair in next(rows(part))]
            assert sorted(of_parts) == sorted(next(rows(batch)))
            sizes = [part["mask"].sum() for part in parts]
            assert max(sizes) - min(sizes) <= 13
            for part in parts:
                assert torch.equal(part["resets"], part["timesteps"] == 0)
        else:
            for key, value in batch.items():
                assert torch.equal(torch.cat([part[key] for part in parts]), value)
    # One position, whatever the number of processes.
    torch.save(whole.state_dict(), expected := io.BytesIO())
    for share in shares:
        torch.save(share.state_dict(), saved := io.BytesIO())
        assert saved.getvalue() == expected.getvalue()


@pytest.mark.parametrize("name", sorted(BATCHES))
def test_a_batch_too_small_for_all_processes_is_refused(name):
    def share(batch_steps):
        config = ProtocolConfig(name, batch_steps, 10)
        return make_batches(make_episodes([13, 4]), config, seed=0, device=CPU, rank=3, ranks=4)

    with pytest.raises(UserError, match=r"batch_steps is 39, too few .* at least 40,"):
        share(39)
    assert share(40).next()["mask"].any()


def test_all_episodes_of_an_equal_return_are_the_best():
    """Logs of a robot have no rewards: none of their episodes may be preferred."""
    episodes = replace(make_episodes([3, 4, 5] * 10), rewards=np.zeros(120))
    assert best_episodes(episodes).tolist() == list(range(30))
