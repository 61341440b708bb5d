"""The reader of settings: defaults < a TOML file < flags."""

import errno
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from marginlab.files import content_of
from marginlab.settings.errors import SettingsError
from marginlab.settings.fields import made, replaced
from marginlab.settings.nested import flat
from marginlab.settings.notation import is_choice
from marginlab.settings.trust import reads_data

T = TypeVar("T")
_LIMIT = 2**20  # bytes of a file of settings; those of a study have some 1000


def read(
    kind: type[T],
    toml: Path | str | None = None,
    flags: Sequence[str] = (),
    *,
    prog: str | None = None,
) -> T:
    """Read settings: defaults, overridden by a TOML file, overridden by flags like `--batch 64`.

    A nested dataclass is a table of the file, `[recipe]`, and has flags like `--recipe.batch 64`. A
    flag may leave out the table's name where no other field has the same one: `--batch 64`.

    Raises:
        SettingsError: The file is missing or no TOML, a key is unknown, a value has the wrong type,
            or the dataclass refuses a value.
        SystemExit: From tyro, for wrong flags (status 2) and for `--help`.
    """
    value = made(kind, {}, "the defaults")
    if toml is not None:
        value = replaced(value, _table(Path(toml)), str(toml))
    return _with_flags(value, flags, prog) if flags else value


def _table(path: Path) -> dict[str, Any]:
    try:
        # somebody else's; one's own may be a pipe
        content = content_of(path, _LIMIT) if reads_data() else path.read_bytes()
        return tomllib.loads(content.decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise SettingsError(f"There is no settings file {path}.") from error
    except (ValueError, IsADirectoryError, RecursionError) as error:
        raise SettingsError(f"{path} is not a TOML file: {error}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise SettingsError(f"{path} is not a TOML file: {error.strerror}") from error


def _with_flags(value: T, flags: Sequence[str], prog: str | None) -> T:
    import tyro  # an extra (`lab`): the core reads TOML and makes objects without it

    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def choice(info: Any) -> Any:
        """Read a choice among classes as its text."""
        if not is_choice(info.type):
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="STR",
            instance_from_str=lambda words: words[0],
            is_instance=lambda item: isinstance(item, str),
            str_from_instance=lambda item: [item],
        )

    return tyro.cli(
        type(value),
        args=[_full_name(flag, value) for flag in flags],
        default=value,
        prog=prog,
        config=(tyro.conf.FlagCreatePairsOff,),
        registry=registry,
    )


def _full_name(flag: str, value: Any) -> str:
    """Return a flag with the name of its table, which may be left out: --data, --recipe.data."""
    name, equals, rest = flag.partition("=")
    key = name.removeprefix("--").replace("-", "_")
    found = [known for known in flat(value) if f".{known}".endswith(f".{key}")]
    if not name.startswith("--") or "." in key or len(found) != 1:
        return flag
    return f"--{found[0].replace('_', '-')}{equals}{rest}"
