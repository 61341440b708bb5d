"""Files of other programs, as arrays: class centers of insightface, and of one safetensors file.

`marginlab.losses.resized` gives such centers another number of classes.
"""

from marginlab.formats.centers import export_insightface as export_insightface
from marginlab.formats.centers import import_insightface as import_insightface
from marginlab.formats.centers import load_centers as load_centers
from marginlab.formats.centers import save_centers as save_centers

__all__ = ["export_insightface", "import_insightface", "load_centers", "save_centers"]
