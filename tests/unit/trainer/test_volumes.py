"""A URI leads to a path on its volume and nowhere else."""

import pytest

from finetune_trainer.volumes import OutsideVolume, locate, locate_folder


@pytest.fixture
def mounts(tmp_path):
    for name in ("claim", "map", "other"):
        (tmp_path / name).mkdir()
    return {"pvc://data": str(tmp_path / "claim"), "configmap://rows": str(tmp_path / "map")}


def test_a_uri_is_a_path_below_its_mount(mounts, tmp_path):
    assert locate("pvc://data/a/b.jsonl", mounts) == tmp_path / "claim/a/b.jsonl"
    assert locate("pvc://data", mounts) == tmp_path / "claim"
    assert locate("configmap://rows/train.jsonl", mounts) == tmp_path / "map/train.jsonl"
    assert locate(f"file://{tmp_path}/x", mounts) == tmp_path / "x"


def test_a_link_inside_the_volume_is_followed(mounts, tmp_path):
    """So config maps are mounted: key -> ..data/key, ..data -> a folder of that moment."""
    (tmp_path / "map/..2026").mkdir()
    (tmp_path / "map/..2026/train.jsonl").write_text("{}")
    (tmp_path / "map/..data").symlink_to("..2026")
    (tmp_path / "map/train.jsonl").symlink_to("..data/train.jsonl")
    assert locate("configmap://rows/train.jsonl", mounts).read_text() == "{}"


@pytest.mark.parametrize("target", ["../other/secret", "/etc/passwd", "../claim-2/x"])
def test_a_link_out_of_the_volume_is_refused(mounts, tmp_path, target):
    (tmp_path / "claim/link").symlink_to(target)
    with pytest.raises(OutsideVolume, match="a symbolic link leads out of pvc://data"):
        locate("pvc://data/link", mounts)


def test_a_linked_folder_out_of_the_volume_is_refused(mounts, tmp_path):
    (tmp_path / "claim/folder").symlink_to("../other")
    with pytest.raises(OutsideVolume):
        locate("pvc://data/folder/not-there-yet", mounts)


def test_a_volume_that_is_not_mounted_is_named(mounts):
    with pytest.raises(OutsideVolume, match="pvc://elsewhere is not mounted"):
        locate("pvc://elsewhere/x", mounts)


def test_nothing_in_a_folder_leads_out_of_the_volume(mounts, tmp_path):
    """A tokenizer's file is published with the result: a link to the pod's environment would publish that."""
    folder = tmp_path / "claim/model"
    folder.mkdir()
    (tmp_path / "claim/blob").write_text("{}")
    (folder / "config.json").symlink_to("../blob")
    assert locate_folder("pvc://data/model", mounts) == folder
    (folder / "generation_config.json").symlink_to("/proc/self/environ")
    with pytest.raises(OutsideVolume, match=r"generation_config.json is a symbolic link that leads out of pvc://data"):
        locate_folder("pvc://data/model", mounts)
