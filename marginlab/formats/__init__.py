"""Files of other programs as arrays.

    class centers         of insightface, and of one safetensors file
    record files          `.rec`, `.idx` and `property`
    verification packs    `.bin`
    lists of protocols    LFW, TinyFace, SurvFace, SCface, IJB, MegaFace

Bytes are untrusted. A reader gives a value, or an error that names the file, the place and the
remedy. It runs no code, and holds no more than a file does. `marginlab.losses.resized` gives class
centers another number of classes.
"""

from marginlab.formats.centers import export_insightface as export_insightface
from marginlab.formats.centers import import_insightface as import_insightface
from marginlab.formats.centers import load_centers as load_centers
from marginlab.formats.centers import save_centers as save_centers
from marginlab.formats.ijb import read_faces as read_faces
from marginlab.formats.ijb import read_landmarks as read_landmarks
from marginlab.formats.ijb import read_subjects as read_subjects
from marginlab.formats.ijb import read_template_pairs as read_template_pairs
from marginlab.formats.index import RecordIndex as RecordIndex
from marginlab.formats.megaface import read_feature as read_feature
from marginlab.formats.megaface import write_feature as write_feature
from marginlab.formats.pack import Pack as Pack
from marginlab.formats.pack import read_pack as read_pack
from marginlab.formats.pack import write_pack as write_pack
from marginlab.formats.pairs import PairList as PairList
from marginlab.formats.pairs import People as People
from marginlab.formats.pairs import read_pairs as read_pairs
from marginlab.formats.pairs import read_people as read_people
from marginlab.formats.record import read_property as read_property
from marginlab.formats.record import read_record as read_record
from marginlab.formats.record import read_records as read_records
from marginlab.formats.record import write_records as write_records
from marginlab.formats.recordio import RecordReader as RecordReader
from marginlab.formats.recordio import RecordWriter as RecordWriter
from marginlab.formats.surveillance import read_scface as read_scface
from marginlab.formats.surveillance import read_survface as read_survface
from marginlab.formats.surveillance import read_survface_pairs as read_survface_pairs
from marginlab.formats.surveillance import read_tinyface as read_tinyface

__all__ = (
    "Pack",
    "PairList",
    "People",
    "RecordIndex",
    "RecordReader",
    "RecordWriter",
    "export_insightface",
    "import_insightface",
    "load_centers",
    "read_faces",
    "read_feature",
    "read_landmarks",
    "read_pack",
    "read_pairs",
    "read_people",
    "read_property",
    "read_record",
    "read_records",
    "read_scface",
    "read_subjects",
    "read_survface",
    "read_survface_pairs",
    "read_template_pairs",
    "read_tinyface",
    "save_centers",
    "write_feature",
    "write_pack",
    "write_records",
)
