"""Files of class centers: round trips of insightface's shards and of safetensors, what is refused,
and other numbers of classes.
"""

import os
import re

import pytest
import torch
from safetensors.torch import save_file

from marginlab.formats import (
    export_insightface,
    import_insightface,
    load_centers,
    save_centers,
)
from marginlab.losses import PartialFC, resized
from marginlab.optim import LazySGD


def centers_of(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("C", [1, 3, 8, 13])
def test_shards_of_any_number_of_ranks_give_the_centers_back(tmp_path, C, ranks):
    centers = centers_of(C, 5, dtype=torch.float64)
    export_insightface(centers[:, None], tmp_path, ranks)
    assert torch.equal(import_insightface(tmp_path), centers)
    files = sorted(tmp_path.iterdir(), reverse=True)  # given in any order
    assert len(files) == ranks
    assert torch.equal(import_insightface(files, num_classes=C), centers)


def test_a_shard_holds_what_insightface_reads_and_no_more(tmp_path):
    centers = centers_of(7, 4)
    export_insightface(centers, tmp_path, 3)
    bounds = [(0, 3), (3, 5), (5, 7)]  # C // N + 1 classes for the first C mod N
    for rank, (start, stop) in enumerate(bounds):
        weight = torch.load(tmp_path / f"checkpoint_gpu_{rank}.pt", weights_only=True)[
            "state_dict_softmax_fc"
        ]["weight"]
        assert torch.equal(weight, centers[start:stop])
        assert weight.untyped_storage().nbytes() == weight.numel() * 4


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_2021_and_whole_checkpoints_are_read(tmp_path, zipped):
    """Also more than ten ranks, whose names sort otherwise, and what stands beside the centers."""
    centers = centers_of(25, 4)
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    for rank, part in enumerate(centers.split([3, *[2] * 11])):
        name = f"rank{'_' if zipped else ':'}{rank}_softmax_weight.pt"
        torch.save(part.clone(), tmp_path / "old" / name, _use_new_zipfile_serialization=zipped)
        torch.save(part.clone(), tmp_path / "old" / f"rank_{rank}_softmax_weight_mom.pt")
        whole = {
            "epoch": 3,
            "global_step": 70,
            "state_dict_backbone": {"w": torch.ones(2)},
            "state_dict_softmax_fc": {"weight": part.clone()},
        }
        torch.save(
            {**whole, "state_optimizer": {"param_groups": [{"lr": 0.1}]}},
            tmp_path / "new" / f"checkpoint_gpu_{rank}.pt",
        )
    (tmp_path / "old" / "backbone.pth").write_bytes(b"")
    assert torch.equal(import_insightface(tmp_path / "old"), centers)
    assert torch.equal(import_insightface(tmp_path / "new"), centers)


@pytest.mark.parametrize("ranks", [1, 3, 7])
def test_momentum_goes_out_and_comes_back_and_a_lazy_optimizer_goes_on_with_it(tmp_path, ranks):
    """A head and LazySGD restored from the files make the next step bit for bit."""
    head = stepped(0)
    optimizer = LazySGD(head.parameters(), lr=0.1)
    step(head, optimizer, 1)
    kept = optimizer.state[head.centers]["momentum_buffer"]
    assert float(kept.abs().max()) > 0
    export_insightface(head.centers, tmp_path, ranks, momentum=kept)
    again = stepped(5)
    again.load_centers(import_insightface(tmp_path, num_classes=9))
    assert torch.equal(again.centers, head.centers)
    other = LazySGD(again.parameters(), lr=0.1)
    momentum = import_insightface(tmp_path, num_classes=9, momentum=True)
    assert torch.equal(momentum[:, None], kept)
    assert len(list(tmp_path.iterdir())) == 2 * ranks
    step(again, other, 1)  # makes the optimizer's state
    again.load_centers(import_insightface(tmp_path))
    other.state[again.centers]["momentum_buffer"].copy_(momentum[:, None])
    step(head, optimizer, 2)
    step(again, other, 2)
    assert torch.equal(again.centers, head.centers)
    with pytest.raises(FileExistsError, match="already holds shards"):
        export_insightface(head.centers, tmp_path, ranks, momentum=kept)


def stepped(seed):
    return PartialFC(9, 4, sample_rate=1.0, seed=seed, dense_grad=False, scale=8.0)


def step(head, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 4, generator=generator)
    optimizer.zero_grad()
    head(x, torch.randint(9, (6,), generator=generator)).backward()
    optimizer.step()


def test_momentum_that_is_not_there_or_does_not_fit_is_refused(tmp_path, unchecked):
    export_insightface(centers_of(5, 2), tmp_path, 2)
    with pytest.raises(FileNotFoundError, match=r"such as rank_0_softmax_weight_mom\.pt"):
        import_insightface(tmp_path, momentum=True)
    with pytest.raises(ValueError, match=r"shape \(5, 2\), not \(4, 2\)"):
        export_insightface(centers_of(5, 2), tmp_path / "b", 2, momentum=centers_of(4, 2))


def exported(folder, C=10, ranks=4):
    export_insightface(centers_of(C, 4), folder, ranks)
    return [folder / f"checkpoint_gpu_{rank}.pt" for rank in range(ranks)]


def test_shards_that_do_not_add_up_are_refused_by_name(tmp_path):
    files = exported(tmp_path)  # 3, 3, 2, 2
    torch.save({"state_dict_softmax_fc": {"weight": torch.ones(1, 4)}}, files[3])
    with pytest.raises(
        ValueError,
        match=r"9 classes together.*checkpoint_gpu_1.pt \(3, not 2\), .*checkpoint_gpu_3.pt \(1, "
        r"not 2\)",
    ):
        import_insightface(tmp_path)
    files[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"none of rank 1\."):
        import_insightface(tmp_path)


def test_a_lost_last_rank_is_seen_by_the_sizes_or_by_the_number_of_classes(tmp_path):
    files = exported(tmp_path)
    files[3].unlink()  # 3, 3, 2 follows the rule of 8 classes on 3 ranks
    assert len(import_insightface(tmp_path)) == 8
    with pytest.raises(ValueError, match="hold 8 classes, not 10"):
        import_insightface(tmp_path, num_classes=10)


def test_what_is_no_shard_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        import_insightface(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="holds no shard"):
        import_insightface(tmp_path)
    with pytest.raises(FileNotFoundError, match="The list holds no shard"):
        import_insightface([])
    files = exported(tmp_path)
    with pytest.raises(ValueError, match=r"The name of .*other.pt says no rank"):
        import_insightface([*files, tmp_path / "other.pt"])
    with pytest.raises(ValueError, match="A rank is given twice"):
        import_insightface([*files, files[1]])
    torch.save(torch.ones(2, 4), tmp_path / "rank_0_softmax_weight.pt")
    with pytest.raises(ValueError, match="of two formats"):
        import_insightface(tmp_path)
    torch.save({"weight": torch.ones(3, 4)}, files[0])
    with pytest.raises(
        ValueError, match=r"checkpoint_gpu_0.pt holds no centers: .*state_dict_softmax_fc"
    ):
        import_insightface(files)
    torch.save({"state_dict_softmax_fc": {"weight": torch.ones(3, 5)}}, files[0])
    with pytest.raises(
        ValueError,
        match=r"checkpoint_gpu_1.pt holds \(3, 4\) of torch.float32, and .*checkpoint_gpu_0.pt "
        r"\(3, 5\)",
    ):
        import_insightface(files)


class Foreign:
    pass


def test_no_code_in_a_file_is_run(tmp_path):
    torch.save(
        {"state_dict_softmax_fc": {"weight": torch.ones(3, 4)}, "more": Foreign()},
        tmp_path / "checkpoint_gpu_0.pt",
    )
    with pytest.raises(
        ValueError,
        match=r"checkpoint_gpu_0.pt could not be read as tensors.*it holds a "
        r"test_centers.Foreign.*save its centers alone",
    ):
        import_insightface(tmp_path)
    (tmp_path / "checkpoint_gpu_0.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint_gpu_0.pt could not be read"):
        import_insightface(tmp_path)


def test_an_export_mixes_with_nothing_and_has_no_place_for_subcenters(tmp_path):
    exported(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match="already holds shards"):
        export_insightface(centers_of(6, 4), tmp_path, 2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(ValueError, match=r"one center for a class, here are \(6, 3, 4\)"):
        export_insightface(centers_of(6, 3, 4), tmp_path / "more", 2)
    with pytest.raises(ValueError, match="not 0"):
        export_insightface(centers_of(6, 4), tmp_path / "more", 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(7, 4), (7, 1, 4), (7, 3, 4)])
def test_one_safetensors_file(tmp_path, shape, dtype):
    centers = centers_of(*shape, dtype=dtype).requires_grad_()
    save_centers(tmp_path / "centers.safetensors", centers)
    back = load_centers(tmp_path / "centers.safetensors")
    assert back.dtype == dtype
    assert torch.equal(back, centers.detach().reshape(7, -1, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["centers.safetensors"]
    head = PartialFC(7, 4, subcenters=back.shape[1], dtype=dtype)
    head.load_centers(back)
    assert torch.equal(head.centers, back)


def test_a_strided_view_is_saved_as_it_reads(tmp_path):
    centers = centers_of(4, 7).T
    save_centers(tmp_path / "a", centers)
    assert torch.equal(load_centers(tmp_path / "a")[:, 0], centers)


def test_files_that_are_not_of_centers_are_refused(tmp_path):
    path = tmp_path / "centers.safetensors"
    with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
        load_centers(path)
    save_centers(path, centers_of(7, 4))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load_centers(path)
    save_file({"weight": torch.ones(2, 2)}, path)
    with pytest.raises(ValueError, match="holds no tensor `centers`, but weight"):
        load_centers(path)
    save_file(
        {"centers": torch.ones(2, 1, 2)},
        path,
        metadata={"num_classes": "3", "subcenters": "1", "dim": "2"},
    )
    with pytest.raises(
        ValueError, match=r"\(2, 1, 2\), but its metadata says \(C, K, D\) = \('3', '1', '2'\)"
    ):
        load_centers(path)


@pytest.mark.parametrize("shape", [(1500, 4), (1500, 2, 4)])
def test_more_classes_are_those_of_a_new_classifier_and_fewer_are_the_first(shape):
    centers = centers_of(*shape)
    more = resized(centers, 2100, seed=5)
    fresh = (
        PartialFC(2100, 4, subcenters=centers.flatten(1).shape[1] // 4, seed=5)
        .centers.detach()
        .reshape(2100, *shape[1:])
    )
    assert torch.equal(more[:1500], centers)
    assert torch.equal(more[1500:], fresh[1500:])
    assert torch.equal(resized(more, 1500, seed=0), centers)
    assert torch.equal(resized(centers, 40, seed=0), centers[:40])
    same = resized(centers, 1500, seed=0)
    assert torch.equal(same, centers)
    assert same.data_ptr() != centers.data_ptr()
    with pytest.raises(ValueError, match="at least 1, not 0"):
        resized(centers, 0, seed=0)


@pytest.mark.xdist_group("ranks")
def test_a_part_of_the_centers_is_not_written_as_all(pool, tmp_path):
    for said in pool.run(2, written, tmp_path):
        assert "Of these 5 centers this rank holds a part. Give centers.full_tensor()" in said
    assert not list(tmp_path.iterdir())


def written(group, rank, folder):
    centers = PartialFC(5, 4, group=group).state_dict()["centers"]
    said = []
    for write in (
        lambda: save_centers(folder / "centers.safetensors", centers),
        lambda: export_insightface(centers, folder, 2),
    ):
        with pytest.raises(ValueError, match="a part") as error:
            write()
        said.append(str(error.value))
    assert said[0] == said[1]
    return said[0]


def flipped(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 16
    path.write_bytes(data)


def test_a_flipped_bit_in_a_shard_is_refused(tmp_path):
    """torch.load verifies no checksum."""
    (path,) = exported(tmp_path, C=40, ranks=1)
    whole = path.read_bytes()
    start = whole.index(centers_of(40, 4).numpy().tobytes())
    pickled = whole.index(b"state_dict_softmax_fc")
    for at in (*range(start, start + 640, 64), pickled + 3, pickled + 60):
        path.write_bytes(whole)
        flipped(path, at)
        with pytest.raises(ValueError, match=r"gpu_0\.pt could not be read as tensors.*Bad CRC"):
            import_insightface(tmp_path)


def test_other_records_of_a_checkpoint_are_not_read(tmp_path):
    path = tmp_path / "checkpoint_gpu_0.pt"
    backbone = torch.full((1000,), 7.0)
    head = {"state_dict_softmax_fc": {"weight": centers_of(5, 4)}}
    torch.save({"state_dict_backbone": {"w": backbone}, **head}, path)
    flipped(path, path.read_bytes().index(backbone.numpy().tobytes()) + 100)
    assert torch.equal(import_insightface(tmp_path), centers_of(5, 4))


def test_centers_that_are_larger_than_their_file_are_refused(tmp_path):
    many = torch.ones(4).expand(10**9, 4)
    torch.save({"state_dict_softmax_fc": {"weight": many}}, tmp_path / "checkpoint_gpu_0.pt")
    with pytest.raises(ValueError, match=r"checkpoint_gpu_0\.pt holds no centers"):
        import_insightface(tmp_path)
    torch.save(
        {"state_dict_softmax_fc": {"weight": centers_of(3, 4).to_sparse()}},
        tmp_path / "checkpoint_gpu_0.pt",
    )
    with pytest.raises(ValueError, match=r"checkpoint_gpu_0\.pt"):
        import_insightface(tmp_path)


def test_a_shard_that_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "checkpoint_gpu_0.pt")
    with pytest.raises(ValueError, match=r"gpu_0\.pt could not be .* it is a named pipe"):
        import_insightface(tmp_path)
    with pytest.raises(FileNotFoundError, match="checkpoint_gpu_1"):
        import_insightface([tmp_path / "checkpoint_gpu_1.pt", *exported(tmp_path / "more", 3, 1)])
    with pytest.raises(FileNotFoundError, match=r"checkpoint_gpu_0\.pt"):
        load_centers(tmp_path / "checkpoint_gpu_0.pt")
