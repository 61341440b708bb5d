"""The run-time checker of annotations in tests: beartype, with an int accepted where a float is
asked for, as in any Python call.
"""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
