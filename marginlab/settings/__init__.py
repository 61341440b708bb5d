"""Settings: a frozen dataclass, whose defaults a TOML file overrides, which flags override.

`read` is the only reader, for studies and recipes alike. It reads the output of `to_toml` back
equal. A field is a bool, int, float, str, a tuple of one of these, or another frozen dataclass of
such fields: a table `[recipe]` in TOML, `--recipe.batch 64` as a flag.

A choice among classes is a string in Python's call notation, `"SimCLR(temperature=0.5)"`. From
Python it may also be an object, a class, or a class with arguments (`functools.partial`). `make`
turns any of them into an object of the kind that is asked for.

A class of the user's own is `"package.module:Class(size=2)"`, and that module is imported. So such
a text is code that the user names. Settings that are read from a run folder (`as_data`) import no
other module.
"""

from marginlab.settings.errors import SettingsError as SettingsError
from marginlab.settings.errors import nearest as nearest
from marginlab.settings.fields import check as check
from marginlab.settings.fields import replaced as replaced
from marginlab.settings.making import make as make
from marginlab.settings.nested import flat as flat
from marginlab.settings.notation import Choice as Choice
from marginlab.settings.notation import call_notation as call_notation
from marginlab.settings.notation import describe as describe
from marginlab.settings.notation import named_repr as named_repr
from marginlab.settings.notation import with_arguments as with_arguments
from marginlab.settings.reading import read as read
from marginlab.settings.toml import one_line as one_line
from marginlab.settings.toml import to_toml as to_toml
from marginlab.settings.trust import OWN as OWN
from marginlab.settings.trust import as_data as as_data
from marginlab.settings.trust import named_in as named_in
