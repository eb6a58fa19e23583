"""What lives in every Python kernel: how results are shown, and what makes a clone its owner's."""

from __future__ import annotations

import contextlib
import enum
import importlib
import math
import os
import random
import sys
from collections.abc import Callable, Mapping
from typing import Any

from IPython.core.formatters import BaseFormatter
from IPython.core.interactiveshell import InteractiveShell
from traitlets import ObjectName, Unicode


class DataFormatter(BaseFormatter):
    """``e2b/data``: a data frame as a dictionary of its columns."""

    format_type = Unicode("e2b/data")
    print_method = ObjectName("_repr_e2b_data_")
    _return_type = (dict, str)


class ChartFormatter(BaseFormatter):
    """``e2b/chart``: what a figure shows, in numbers and labels."""

    format_type = Unicode("e2b/chart")
    print_method = ObjectName("_repr_e2b_chart_")
    _return_type = (dict, str)

    def __call__(self, obj: Any) -> Any:
        # IPython unregisters whatever prints figures whenever it sets up their inline display.
        figure = sys.modules.get("matplotlib.figure")
        if figure is not None and isinstance(obj, figure.Figure):
            return _chart(obj)
        return super().__call__(obj)


def install(shell: InteractiveShell) -> None:
    """Teach a new kernel's shell to show figures, frames and images as the SDK expects."""
    assert shell.display_formatter is not None
    formatters = shell.display_formatter.formatters
    for kind in (DataFormatter, ChartFormatter):
        formatter = kind(parent=shell.display_formatter)
        formatters[formatter.format_type] = formatter
    formatters["e2b/data"].for_type_by_name("pandas", "DataFrame", _columns)  # pandas 3
    formatters["e2b/data"].for_type_by_name("pandas.core.frame", "DataFrame", _columns)
    shell.run_line_magic("matplotlib", "inline")
    _show_images()


def reseed() -> None:
    """Forget what random numbers this process would share with its like: forks, and clones of the machine."""
    random.seed()
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()
    if (ssl := sys.modules.get("ssl")) is not None:
        ssl.RAND_add(os.urandom(32), 32.0)


def rehearse() -> None:
    """Take the way of a first execution, and leave no trace."""
    from IPython.core.getipython import get_ipython

    reseed()
    shell = get_ipython()
    assert shell is not None
    assert shell.display_formatter is not None
    shell.display_formatter.format(2)  # type: ignore[no-untyped-call]
    shell.display_pub.publish({"text/plain": ""})
    sys.stdout.write(" ")
    sys.stdout.flush()


def become(env: Mapping[str, str | None]) -> None:
    """The machine has a new owner: no shared randomness, and its environment."""
    reseed()
    set_env(env)


def set_env(env: Mapping[str, str | None]) -> None:
    """Set variables; remove those whose value is None."""
    for name, value in env.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


LATE_IMPORTS = (
    "IPython.core.completerlib",
    "IPython.core.magics.execution",
    "IPython.core.oinspect",
    "IPython.core.pylabtools",
    "IPython.extensions.storemagic",
    "PIL.ImageShow",
    "faulthandler",
    "ipykernel.debugger",
    "matplotlib_inline.backend_inline",
)
"""What a kernel would load by itself as it starts, each time anew."""


def warm() -> None:
    """Do once what the first cells are likely to do, so that nothing of it is left to load."""
    for name in LATE_IMPORTS:
        importlib.import_module(name)
    import e2b_charts  # noqa: F401
    import matplotlib
    import numpy
    import pandas
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    frame = pandas.DataFrame({"a": numpy.arange(3), "b": ["x", "y", "z"]})
    repr(frame), frame._repr_html_(), frame.describe(), _columns(frame)
    with matplotlib.rc_context():
        figure = Figure()
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.plot([1, 2, 3], [1, 4, 9], label="x")
        axes.set_title("warm")
        axes.legend()
        _chart(figure)
        figure.savefig(os.devnull, format="png")
    Image.new("RGB", (2, 2)).save(os.devnull, format="png")


def _columns(frame: Any) -> dict[str, Any] | None:
    """A frame as JSON can hold it; None when its columns cannot be named apart."""
    columns = [str(name) for name in frame.columns]
    if len(set(columns)) < len(columns):
        return None
    return {name: [_plain(value) for value in frame.iloc[:, at].tolist()] for at, name in enumerate(columns)}


def _chart(figure: Any) -> dict[str, Any] | None:
    from e2b_charts import chart_figure_to_dict

    with contextlib.suppress(Exception):  # a chart that cannot be read is still a picture
        chart: dict[str, Any] = _plain(chart_figure_to_dict(figure))
        return chart or None
    return None


def _plain(value: Any) -> Any:
    """``value`` in JSON's types: times in ISO 8601, what is not a number as None, other things as text."""
    match value:
        case None:
            return None
        case enum.Enum():
            return _plain(value.value)
        case bool() | str() | int():
            kind = next(kind for kind in (bool, str, int) if isinstance(value, kind))
            return kind(value)
        case float():
            return float(value) if math.isfinite(value) else None
        case Mapping():
            return {str(_plain(key)): _plain(each) for key, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
    if value is getattr(sys.modules.get("pandas"), "NaT", None):
        return None
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value)


def _show_images() -> None:
    """``Image.show`` shows in the results, there being no screen; so does saving to a file by name."""
    from IPython.core.display_functions import display as shown
    from PIL import Image, ImageShow

    display: Callable[[Image.Image], None] = shown

    class Results(ImageShow.Viewer):
        def show(self, image: Image.Image, **options: Any) -> int:
            display(image)
            return 1

    ImageShow._viewers[:] = [Results()]

    save = Image.Image.save
    if getattr(save, "shows", False):
        return

    def save_and_show(image: Image.Image, fp: Any, format: str | None = None, **options: Any) -> None:
        save(image, fp, format, **options)
        if isinstance(fp, str) and fp != os.devnull:
            display(image)

    save_and_show.shows = True  # type: ignore[attr-defined]
    Image.Image.save = save_and_show  # type: ignore[assignment, method-assign]
