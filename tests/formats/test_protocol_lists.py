"""Lists of protocols: the layouts as they are published, and what is refused in them."""

import struct

import numpy as np
import pytest
from scipy.io import savemat

from marginlab import formats

PAIRS = "2\t1\nA_B\t1\t2\nA_B\t1\tC\t3\nE\t1\t4\nE\t1\tF\t12\n"


def put(tmp_path, text, name="list.txt"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_pairs_of_view_2_and_view_1(tmp_path):
    found = formats.read_pairs(put(tmp_path, PAIRS))
    assert found.first == ("A_B/A_B_0001.jpg", "A_B/A_B_0001.jpg", "E/E_0001.jpg", "E/E_0001.jpg")
    assert found.second[1::2] == ("C/C_0003.jpg", "F/F_0012.jpg")
    assert found.same.tolist() == [True, False, True, False]
    assert found.fold.tolist() == [0, 0, 1, 1]
    found = formats.read_pairs(put(tmp_path, "1\nA 1 2\nA 1 B 1\n"), "png")
    assert found.second == ("A/A_0002.png", "B/B_0001.png")
    assert found.fold.tolist() == [0, 0]


def test_people_of_view_2_and_view_1(tmp_path):
    found = formats.read_people(put(tmp_path, "2\n1\nA\t3\n2\nB\t1\nC\t2\n"))
    assert found.names == ("A", "B", "C")
    assert found.images.tolist() == [3, 1, 2]
    assert found.fold.tolist() == [0, 1, 1]
    found = formats.read_people(put(tmp_path, "2\nA\t3\nB\t1\n"))
    assert found.names == ("A", "B")
    assert found.fold.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        ("pairs", "", "line 1: there are not one or two numbers"),
        ("pairs", "2\t2\nA 1 2\n", "line 1: 1 pairs follow, not 2 times 2 times 2"),
        ("pairs", PAIRS.replace("A_B\t1\t2", "A_B\t1"), "line 2: a pair of one person is 3 words"),
        ("pairs", PAIRS.replace("C\t3", "C\t0"), "line 3: '0' is no number above 0"),
        ("pairs", PAIRS.replace("F", ".."), "line 5: '..' is no person's name"),
        ("pairs", b"\xff", "byte 0: the bytes are no text in UTF-8"),
        ("people", "2\nA 1\n", "line 1: 2 people are said to follow, but 1 do"),
        ("people", "2\n1\nA 1\n", "line 1: 2 lists are said to follow, but list 1 is missing"),
        ("people", "1\nA 1\nB 2\n", "line 3: 1 lines follow the last person"),
        ("people", "1\n2\nA 1\n", "line 2: 2 people are said to follow, but 1 do"),
        ("people", "1\nA x\n", "line 2: 'x' is no number above 0"),
        ("faces", "a.jpg 1\n", "line 1: it is no name and two numbers"),
        ("faces", "/a.jpg 1 2\n", "line 1: it is no name and two numbers"),
        ("faces", "a.jpg 1 -2\n", "line 1: a word is no whole number from 0"),
        ("faces", "", "line 1: the file is empty"),
        ("landmarks", "a.jpg 1 2\n", "line 1: it is no name and eleven numbers"),
        ("landmarks", "a.jpg" + " nan" * 11, "line 1: it is no name and eleven numbers"),
        ("landmarks", "a.jpg x\n", "line 1: a word is no number"),
        ("template_pairs", "1 2 2\n", "line 1: it is no pair and 0 or 1"),
        ("feature", b"abc", "byte 0: a header has 16 bytes, not 3"),
        ("feature", struct.pack("<4i", 2**31 - 1, 1, 4, 5), "numbers are said to follow, but 0"),
        ("feature", struct.pack("<4i", 1, 2, 4, 5), "byte 0: the header is (1, 2, 4, 5)"),
        ("feature", struct.pack("<4if", 1, 1, 4, 5, np.inf), "byte 16: the value is inf"),
    ],
)
def test_what_is_wrong_names_file_place_and_remedy(tmp_path, read, text, message):
    path = put(tmp_path, text)
    with pytest.raises(ValueError, match=r"list.txt, ") as caught:
        getattr(formats, f"read_{read}")(path)
    assert message in str(caught.value)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no file .*list.txt"):
        getattr(formats, f"read_{read}")(path)


def test_meta_files_of_ijb(tmp_path):
    found = formats.read_faces(put(tmp_path, "1.jpg 7 40\n2.jpg 7 41\n"))
    assert found.names == ("1.jpg", "2.jpg")
    assert (found.template.tolist(), found.medium.tolist()) == ([7, 7], [40, 41])
    found = formats.read_landmarks(put(tmp_path, "1.jpg 1 2 3 4 5 6 7 8 9 10.5 0.25\n"))
    assert found.points[0].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10.5]]
    assert found.score.tolist() == [0.25]
    found = formats.read_template_pairs(put(tmp_path, "1 11 1\n1 12 0\n"))
    assert found.second.tolist() == [11, 12]
    assert found.same.tolist() == [True, False]


def test_galleries_of_ijb_are_joined(tmp_path):
    header = '"TEMPLATE_ID","SUBJECT_ID","FILENAME"\n'
    one = put(tmp_path, header + "9,3,img/1.jpg\n9,3,frames/2.png\n", "G1.csv")
    two = put(tmp_path, "SUBJECT_ID,FILENAME,TEMPLATE_ID\n5,a,4\n", "G2.csv")
    found = formats.read_subjects([one, two])
    assert (found.template.tolist(), found.subject.tolist()) == ([4, 9], [5, 3])
    clash = put(tmp_path, header + "9,4,img/3.jpg\n", "G3.csv")
    with pytest.raises(ValueError, match=r"G3.csv, line 2: template 9 is of subject 3 and 4"):
        formats.read_subjects([one, clash])
    with pytest.raises(ValueError, match=r"G4.csv, line 1: the header lacks a column"):
        formats.read_subjects([put(tmp_path, "a,b\n", "G4.csv")])
    with pytest.raises(ValueError, match=r"G5.csv, line 1: there are no templates"):
        formats.read_subjects([put(tmp_path, header, "G5.csv")])


def test_features_of_megaface(tmp_path):
    path = put(tmp_path, struct.pack("<4i3f", 3, 1, 4, 5, 1, 2, 0.5))
    found = formats.read_feature(path)
    assert found.tolist() == [1, 2, 0.5]
    formats.write_feature(tmp_path / "again.bin", found)
    assert (tmp_path / "again.bin").read_bytes() == path.read_bytes()


def cells(*names):
    found = np.empty((len(names), 1), dtype=object)
    found[:, 0] = names
    return found


def touch(folder, *names):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()


def test_tinyface(tmp_path):
    root = tmp_path / "Testing_Set"
    touch(root / "Gallery_Distractor", "b.jpg", "a.jpg", "notes.txt")
    ids = np.array([[5], [2]], dtype=np.uint16)
    gallery = {"gallery_set": cells("5_1.jpg", "2_1.jpg"), "gallery_ids": ids}
    savemat(root / "gallery_match_img_ID_pairs.mat", gallery)
    savemat(root / "probe_img_ID_pairs.mat", {"probe_set": cells("2_7.jpg"), "probe_ids": ids[1:]})
    found = formats.read_tinyface(root)
    assert found.gallery.paths[:2] == ("Gallery_Match/5_1.jpg", "Gallery_Match/2_1.jpg")
    assert found.gallery.paths[2:] == ("Gallery_Distractor/a.jpg", "Gallery_Distractor/b.jpg")
    assert found.gallery.ids.tolist() == [5, 2, -1, -1]
    assert found.probes.paths == ("Probe/2_7.jpg",)
    assert found.probes.ids.tolist() == [2]
    (root / "probe_img_ID_pairs.mat").write_bytes(b"MATLAB 7.3 MAT-file")
    with pytest.raises(ValueError, match=r"this is a file of MATLAB 7.3. Save it with -v7"):
        formats.read_tinyface(root)
    (root / "probe_img_ID_pairs.mat").write_bytes(b"no mat file at all")
    with pytest.raises(ValueError, match=r"probe_img_ID_pairs.mat, byte 0: it cannot be read"):
        formats.read_tinyface(root)
    savemat(root / "probe_img_ID_pairs.mat", {"probe_set": cells("2_7.jpg")})
    with pytest.raises(ValueError, match=r"its variables: there is no 'probe_ids'"):
        formats.read_tinyface(root)
    savemat(root / "probe_img_ID_pairs.mat", {"probe_set": cells("../x.jpg"), "probe_ids": [1]})
    with pytest.raises(ValueError, match=r"entry 0: it is no name of an image"):
        formats.read_tinyface(root)
    savemat(root / "probe_img_ID_pairs.mat", {"probe_set": cells("x.jpg"), "probe_ids": [1, 2]})
    with pytest.raises(ValueError, match=r"its lists: 1 names and 2 ids"):
        formats.read_tinyface(root)


def test_a_list_that_claims_more_than_its_file_holds_is_refused(tmp_path):
    ids = np.zeros((1, 1), np.uint8)
    path = tmp_path / "probe_img_ID_pairs.mat"
    for compressed, number in ((True, 4_000_000), (False, 2**30)):
        names = cells("a", "b")
        many = np.zeros((number, 1), np.uint8) if compressed else names
        savemat(path, {"probe_set": many, "probe_ids": ids}, do_compression=compressed)
        if not compressed:  # the number of cells is a field of the header
            field = struct.pack("<ii", 2, 1)
            data = path.read_bytes()
            assert data.count(field) == 1
            path.write_bytes(data.replace(field, struct.pack("<ii", number, 1)))
        savemat(
            tmp_path / "gallery_match_img_ID_pairs.mat",
            {"gallery_set": cells("a"), "gallery_ids": ids},
        )
        with pytest.raises(ValueError, match=f"probe_set claims {number:,} entries, more than"):
            formats.read_tinyface(tmp_path)


def test_survface(tmp_path):
    root = tmp_path / "Face_Identification_Test_Set"
    touch(root / "unmated_probe", "9_cam1_1.jpg")
    for name, kind in (("gallery", "gallery"), ("mated_probe", "mated_probe")):
        table = {f"{kind}_set": cells(f"1_{kind}.jpg"), f"{kind}_ids": np.array([[1]])}
        savemat(root / f"{name}_img_ID_pairs.mat", table)
    found = formats.read_survface(root)
    assert found.gallery == (("gallery/1_gallery.jpg",), np.array([1]))
    assert found.probes.paths == ("mated_probe/1_mated_probe.jpg", "unmated_probe/9_cam1_1.jpg")
    assert found.probes.ids.tolist() == [1, -1]
    for kind, names in (("positive", [["a.jpg", "b.jpg"]]), ("negative", [["a.jpg", "c.jpg"]])):
        table = np.array(names, dtype=object)
        savemat(root / f"{kind}_pairs_names.mat", {f"{kind}_pairs_names": table})
    pairs = formats.read_survface_pairs(root)
    assert pairs.first == ("verification_images/a.jpg",) * 2
    assert pairs.second == ("verification_images/b.jpg", "verification_images/c.jpg")
    assert pairs.same.tolist() == [True, False]


def test_scface(tmp_path):
    touch(tmp_path / "mugshot", "001_frontal.JPG", "002_frontal.jpg", "001_L1.jpg")
    touch(tmp_path / "cams", "001_cam1_1.jpg", "002_cam5_3.jpg", "001_cam6_1.jpg", "001_cam8.jpg")
    found = formats.read_scface(tmp_path)
    assert found.gallery.paths == ("mugshot/001_frontal.JPG", "mugshot/002_frontal.jpg")
    assert found.gallery.ids.tolist() == [1, 2]
    assert found.probes.paths == ("cams/001_cam1_1.jpg", "cams/002_cam5_3.jpg")
    assert (found.camera.tolist(), found.distance.tolist()) == ([1, 5], [1, 3])
    with pytest.raises(ValueError, match=r"cams, its images: 0 mugshots of 0 people, 2 probes"):
        formats.read_scface(tmp_path / "cams")
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*Unpack the set"):
        formats.read_scface(tmp_path / "none")
