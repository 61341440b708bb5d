"""The last lines of a training: numbers to the nearest decimal, bounds to one that is not below
them.
"""

from pathlib import Path
from types import SimpleNamespace

from marginlab import settings
from marginlab.train import Recipe
from marginlab.train import __main__ as command
from marginlab.train.rows import Row


def test_a_bound_is_not_printed_below_its_value(tmp_path, monkeypatch, capsys):
    recipe = Recipe(epochs=2)
    file = tmp_path / "recipe.toml"
    file.write_text(settings.to_toml(recipe))
    measured = (
        ("backbone", "certified", "new_images"),
        ("backbone", "companion", ""),
        ("", "knn_error", ""),
    )
    rows = [Row(epoch, *columns, 0.33331) for epoch in (1, 2) for columns in measured]
    fitted = SimpleNamespace(rows=rows, images_per_second=0.0, folder=Path(tmp_path))
    monkeypatch.setattr(command, "fit", lambda *_, **__: fitted)
    assert command.main([str(file), "--folder", str(tmp_path / "run")]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()[:3]]
    assert printed == [
        ["backbone", "certified", "new_images", "0.3334"],
        ["backbone", "companion", "0.3334"],
        ["knn_error", "0.3333"],
    ]
