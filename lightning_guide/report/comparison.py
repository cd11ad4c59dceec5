"""Comparison of two images of a page, one over the other with a movable boundary: HTML, style and script.

The script is a constant: a page names its hash in its policy, so that no other one runs.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape

__all__ = ["SCRIPT", "SCRIPT_SOURCE", "STYLE", "comparison"]


STYLE = """
.compare { max-width: 900px }
.compare .row { display: flex; flex-wrap: wrap; gap: 8px 16px; align-items: center; margin: 8px 0 }
.compare select, .compare button { font: inherit; max-width: 100% }
.compare input[type=range] { width: 100%; margin: 8px 0 }
.stack { position: relative; cursor: ew-resize; touch-action: pan-y; overflow: hidden }
.stack img { width: 100%; user-select: none }
.stack .over { position: absolute; top: 0; left: 0; clip-path: inset(0 0 0 var(--cut)) }
.stack .line { position: absolute; top: 0; bottom: 0; left: var(--cut); width: 2px; margin-left: -1px; background: #fff;
  box-shadow: 0 0 0 1px #222 }
.stack.difference .over { clip-path: none; mix-blend-mode: difference }
.stack.difference .line { display: none }
"""


SCRIPT = """
for (const box of document.querySelectorAll(".compare")) {
  const [left, right] = box.querySelectorAll("select");
  const [slider, difference] = box.querySelectorAll("input");
  const stack = box.querySelector(".stack");
  const [under, over] = ["under", "over"].map(name => {
    const image = document.createElement("img");
    image.className = name;
    image.draggable = false;
    stack.prepend(image);
    return image;
  });
  stack.append(over, stack.querySelector(".line"));
  const show = () => {
    for (const [image, list] of [[under, left], [over, right]]) {
      image.src = document.getElementById(list.value).src;
      image.alt = list.selectedOptions[0].text;
    }
    stack.style.setProperty("--cut", slider.value + "%");
    stack.classList.toggle("difference", difference.checked);
    slider.disabled = difference.checked;
    slider.setAttribute("aria-valuetext", slider.value + " % " + under.alt + ", the rest " + over.alt);
  };
  const drag = event => {
    if (!(event.buttons & 1) || difference.checked) return;
    const place = stack.getBoundingClientRect();
    slider.value = 100 * (event.clientX - place.left) / place.width;
    show();
  };
  stack.addEventListener("pointerdown", event => { stack.setPointerCapture(event.pointerId); drag(event); });
  stack.addEventListener("pointermove", drag);
  box.querySelector("button").addEventListener("click", () => {
    [left.value, right.value] = [right.value, left.value];
    show();
  });
  for (const control of [left, right, slider, difference]) control.addEventListener("input", show);
  right.selectedIndex = 1;
  box.hidden = false;
  show();
}
"""


SCRIPT_SOURCE = f"'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'"
"""The only script that the policy of a page with a comparison permits."""


def comparison(choices: Sequence[tuple[str, str]]) -> str:
    """Return the HTML that compares any two of `choices`: the id of an image on the same page, and its name.

    The boundary moves with the mouse, a finger, or the arrow keys. Without scripts one sentence is shown instead.
    """
    assert len(choices) > 1, choices
    options = "".join(f'<option value="{escape(place)}">{escape(name)}</option>' for place, name in choices)
    return (
        "<noscript><p>The comparison needs scripts, which this browser does not run here.</p></noscript>"
        '<div class="compare" hidden><div class="row">'
        f'<label>left <select aria-label="left image">{options}</select></label>'
        f'<label>right <select aria-label="right image">{options}</select></label>'
        '<button type="button">swap</button></div>'
        '<div class="stack"><div class="line"></div></div>'
        '<input type="range" min="0" max="100" value="50" step="1" aria-label="boundary between left and right">'
        '<label><input type="checkbox"> absolute difference</label></div>'
    )
