"""The page of an atlas: its map in a browser, with the galaxies' stamps, whole in one file."""

from __future__ import annotations

import base64
import html
import io
import json
import re

import numpy as np
import pandas as pd
from bokeh.embed import json_item
from bokeh.layouts import column
from bokeh.model import Model
from bokeh.models import (
    ColorBar,
    Column,
    ColumnDataSource,
    CustomJS,
    Div,
    HoverTool,
    LinearColorMapper,
    RadioButtonGroup,
)
from bokeh.plotting import figure
from bokeh.resources import INLINE
from bokeh.transform import factor_cmap, factor_mark
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from pipeline.images.gallery import words
from pipeline.images.sheet import colour_image
from pipeline.similarity.atlas import QUANTITIES, TYPES, UNKNOWN, Quantity, has_types

SIDE = 64
"""Pixels of a stamp's middle that the page shows."""
_SHOWN = 3
"""Stamps at a time under the mouse, where galaxies are crowded."""
_SELECTED = 24
"""Stamps at most below the map."""
_LARGE, _SMALL = 8, 4
"""Points with a stamp and without, in pixels."""
_CARD = """<div style="display:flex;gap:8px;align-items:center;margin:3px 0;font:12px sans-serif">
<img src="data:image/jpeg;base64,@stamp" alt="stamp" width="144" height="144">
<div><b>@objID</b><br>@place<br>@words<br>@type<br>@split</div></div>"""
_SHEET = """
const data = source.data, chosen = source.selected.indices;
const card = (i) => `<figure style="display:inline-block;margin:4px;font:11px sans-serif">
<img src="data:image/jpeg;base64,${data.stamp[i]}" alt="stamp" width="128" height="128">
<figcaption>${data.objID[i]}<br>${data.place[i]}<br>${data.words[i]}<br>${data.type[i]}
</figcaption></figure>`;
const more = chosen.length > most ? `, the first ${most} are shown` : "";
sheet.text = chosen.length ? `<p>${chosen.length} chosen${more}</p>` +
    chosen.slice(0, most).map(card).join("") : hint;
"""
_SWITCH = """
groups.forEach((group, at) => { for (const one of group) one.visible = at == buttons.active; });
"""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
{scripts}
<style>body {{ font-family: sans-serif; margin: 12px }} h1 {{ font-size: 18px; margin: 0 }}
p {{ font-size: 12px; color: #555; margin: 4px 0 8px }}</style>
</head>
<body>
<h1>{title}</h1>
<p>{subtitle}</p>
<div id="atlas"></div>
<script>
Bokeh.embed.embed_item({item}, "atlas")
</script>
</body>
</html>
"""


def thumbnail(image: np.ndarray) -> str:
    """The middle of a stamp (5, size, size) [nanomaggies] as a JPEG in base64, north up."""
    size = image.shape[-1]
    first = max(0, (size - SIDE) // 2)
    middle = image[:, first : first + SIDE, first : first + SIDE]
    file = io.BytesIO()
    Image.fromarray(colour_image(np.float32(middle))[::-1]).save(file, "JPEG", quality=88)
    return base64.b64encode(file.getvalue()).decode()


def page(table: pd.DataFrame, stamps: pd.Series, title: str, subtitle: str) -> str:
    """The map as HTML that asks nothing of a network: all that it needs is in it.

    `table` is the atlas (objID, x, y, split, z, photoz, petroMag_r, type) with ra and dec [deg];
    `stamps` has, by objID, what `thumbnail` made of some of its galaxies: these are points that
    show their stamp under the mouse. All others are smaller points.
    """
    item = json.dumps(json_item(_layout(table, stamps)), separators=(",", ":"))
    return _PAGE.format(
        title=html.escape(title),
        subtitle=html.escape(subtitle).replace("\n", "<br>"),
        scripts=_scripts(),
        item=_numbered(item).replace("</", "<\\/"),
    )


def _scripts() -> str:
    """Bokeh's own JavaScript, of the parts that the page uses."""
    resources = INLINE.clone(components=["bokeh", "bokeh-widgets"])
    return resources.render_js()


def _numbered(item: str) -> str:
    """Names of models counted anew: Bokeh counts all that a process has made so far."""
    names: dict[str, str] = {}
    return re.sub(
        r'"p(\d+)"', lambda found: names.setdefault(found[0], f'"p{1000 + len(names)}"'), item
    )


def _layout(table: pd.DataFrame, stamps: pd.Series) -> Column:
    with_stamp = table["objID"].isin(stamps.index)
    known = table["type"].notna() + 2 * table["z"].notna()
    table = table.iloc[np.argsort(known, kind="stable")]  # grey points lie below all others
    shown = table[with_stamp.loc[table.index]]
    galaxies = ColumnDataSource(_colours(shown) | _facts(shown, stamps), name="galaxies")
    rest = ColumnDataSource(_colours(table[~with_stamp.loc[table.index]]))
    plot = figure(
        name="map", sizing_mode="stretch_width", height=640, match_aspect=True,
        tools="pan,wheel_zoom,box_zoom,tap,box_select,lasso_select,reset,save",
        active_scroll="wheel_zoom", toolbar_location="above", min_border_right=170,
    )  # fmt: skip
    plot.toolbar.logo = None
    plot.axis.visible = False
    plot.grid.visible = False
    groups = {"type": _by_type(plot, galaxies, rest)} if has_types(table) else {}
    for quantity in QUANTITIES:
        groups[quantity.title] = _by_quantity(plot, galaxies, rest, table, quantity)
    points = [group[0] for group in groups.values()]
    uppermost = [("above", "descending")]
    plot.add_tools(HoverTool(renderers=points, tooltips=_CARD, limit=_SHOWN, sort_by=uppermost))
    return column(_buttons(groups), plot, _sheet(galaxies), sizing_mode="stretch_width")


def _colours(table: pd.DataFrame) -> dict[str, object]:
    """Where galaxies lie and what colours them."""
    columns = {name: table[name].to_numpy(np.float32) for name in ("x", "y")}
    columns |= {one.column: table[one.column].to_numpy(np.float32) for one in QUANTITIES}
    return columns | {"type": [_type(one) for one in table["type"]]}


def _facts(shown: pd.DataFrame, stamps: pd.Series) -> dict[str, object]:
    """What the mouse brings up; an objID as text, since JavaScript would round it."""
    return {
        "above": np.arange(len(shown), dtype=np.int32),
        "size": np.where(shown["type"].isna(), _LARGE - 3, _LARGE).astype(np.int32),
        "objID": shown["objID"].astype(str).tolist(),
        "place": [f"{ra:.5f} {dec:+.5f}" for ra, dec in shown[["ra", "dec"]].to_numpy()],
        "words": [words(one).replace("\n", ", ") for one in shown.to_dict("records")],
        "split": shown["split"].tolist(),
        "stamp": stamps.loc[shown["objID"]].tolist(),
    }


def _type(name: object) -> str:
    return f"{name} type" if isinstance(name, str) else "type unknown"


def _by_type(plot, galaxies: ColumnDataSource, rest: ColumnDataSource) -> list[Model]:
    """Points coloured and shaped by type, those with stamps first, and their legend."""
    styles = {_type(name): style for name, style in (*TYPES.items(), (None, (UNKNOWN, "circle")))}
    colours, markers = ([style[at] for style in styles.values()] for at in (0, 1))
    look = {
        "color": factor_cmap("type", colours, list(styles)),
        "marker": factor_mark("type", markers, list(styles)), "line_color": None,
    }  # fmt: skip
    small = plot.scatter("x", "y", source=rest, size=_SMALL, alpha=0.5, **look)
    large = plot.scatter("x", "y", source=galaxies, size="size", alpha=0.9, legend_field="type",
                         **look)  # fmt: skip
    plot.add_layout(plot.legend[0], "right")
    plot.legend.title = "votes of Galaxy Zoo"
    return [large, small, plot.legend[0]]


def _by_quantity(plot, galaxies, rest, table: pd.DataFrame, quantity: Quantity) -> list[Model]:
    """Points coloured by a column, those with stamps first, and their colour bar."""
    low, high = quantity.limits(table[quantity.column].to_numpy(np.float64))
    palette = [to_hex(colour) for colour in colormaps[quantity.palette](np.linspace(0, 1, 256))]
    mapper = LinearColorMapper(palette, low=low, high=high, nan_color=UNKNOWN)
    look = {"fill_color": {"field": quantity.column, "transform": mapper}, "line_color": None}
    small = plot.scatter("x", "y", source=rest, size=_SMALL, alpha=0.5, **look)
    large = plot.scatter("x", "y", source=galaxies, size=_LARGE, alpha=0.9, **look)
    bar = ColorBar(color_mapper=mapper, title=f"{quantity.title}; grey: {quantity.missing}")
    plot.add_layout(bar, "right")
    return [large, small, bar]


def _buttons(groups: dict[str, list[Model]]) -> RadioButtonGroup:
    """One of the groups is seen at a time."""
    for group in list(groups.values())[1:]:
        for one in group:
            one.visible = False
    buttons = RadioButtonGroup(labels=list(groups), active=0, name="colour")
    args = {"groups": list(groups.values()), "buttons": buttons}
    buttons.js_on_change("active", CustomJS(args=args, code=_SWITCH))
    return buttons


def _sheet(source: ColumnDataSource) -> Div:
    """Below the map: the stamps of the galaxies that are chosen on it."""
    hint = (
        "<p>Point at one of the larger points for its stamp. Click on one, or choose many with "
        "the box or the lasso, and their stamps stay here.</p>"
    )
    sheet = Div(text=hint, name="sheet", sizing_mode="stretch_width")
    args = {"source": source, "sheet": sheet, "most": _SELECTED, "hint": hint}
    source.selected.js_on_change("indices", CustomJS(args=args, code=_SHEET))
    return sheet
