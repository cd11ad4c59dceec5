"""The page of the playground: two settings of one model side by side. The only file that imports gradio."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from lightning_guide.evaluation.runner import Failures
from lightning_guide.playground.drawing import Drawn
from lightning_guide.playground.inputs import Given, Shared, parameter_text, setting_of
from lightning_guide.playground.offered_samplers import offered_samplers, samplers_left_out
from lightning_guide.playground.rendering import difference, render_samples
from lightning_guide.playground.session import Playground
from lightning_guide.report.comparison import STYLE as COMPARISON_STYLE

__all__ = ["STYLE", "build_page"]

NONE = "none"  # guidance

STYLE = (
    COMPARISON_STYLE
    + """
.samples img { width: 100%; max-width: 640px; image-rendering: pixelated; background: #eee }
.compare img { width: 100%; image-rendering: pixelated }
footer { display: none !important }
"""
)

_SLIDE = "this.previousElementSibling.style.setProperty('--cut', this.value + '%')"


@dataclass(frozen=True)
class _Side:
    """Components of one side: what can be changed, in the order of `Given`, and what is shown."""

    name: str
    inputs: list[gr.components.Component]
    guidance: gr.Dropdown
    summary: gr.Markdown
    weight: gr.Slider
    fields: list[gr.Textbox]
    samples: gr.HTML
    cost: gr.Markdown
    config: gr.Code


def build_page(playground: Playground, *, queue: int) -> gr.Blocks:
    """Build the page; at most `queue` requests wait, and one is drawn at a time."""
    with gr.Blocks(title=f"{playground.name} - playground", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown(f"# {escape(playground.name)}")
        with gr.Row():
            prompt = gr.Textbox(label="Prompt", visible=playground.typed, value=playground.prompt or "")
            choices = playground.labels
            labels = gr.Dropdown(
                choices,
                value="balanced" if choices else None,
                label="Label",
                visible=bool(choices) and not playground.typed,
            )
            seed = gr.Number(0, label="Seed", precision=None)
            count = gr.Slider(1, 64, 4, step=1, label="Samples")
        shared = [prompt, labels, seed, count]
        with gr.Row():
            draw = gr.Button("Sample left", elem_id="draw")
            compare = gr.Button("Compare both", variant="primary", elem_id="compare")
            stop = gr.Button("Stop", variant="stop", elem_id="stop")
        status = gr.Textbox("Ready.", label="Status", interactive=False, elem_id="status")
        with gr.Row():
            controls = [_controls(playground, name) for name in ("left", "right")]
        with gr.Row():
            shown = [_shown(name) for name in ("left", "right")]
        sides = [_Side(*control, *show) for control, show in zip(controls, shown, strict=True)]
        gr.Markdown("## The same seeds under both settings")
        view = gr.Radio(["slider", "difference"], value="slider", label="View")
        both = gr.HTML(elem_id="both")
        drawn = gr.State()
        left_out = {
            "Guidances that do not fit this model": playground.refused,
            "Samplers that are not offered": samplers_left_out(playground.sampler),
        }
        for title, reasons in left_out.items():
            if reasons:
                with gr.Accordion(title, open=False):
                    gr.Markdown("\n".join(f"- **{escape(name)}**: {escape(why)}" for name, why in reasons.items()))
        for side in sides:
            _on_method(playground, side)
        newest = [side.inputs[0] for side in sides]  # a run in training stores more
        page.load(lambda: [gr.update(choices=list(playground.models)) for _ in newest], None, newest, queue=False)

        def draw_sides(chosen: Sequence[_Side], values: Mapping[Any, Any]) -> Iterator[dict[Any, Any]]:
            found: list[Drawn] = []
            failures = Failures()
            with failures.contain("drawing"):
                for side in chosen:
                    common = Shared(*(values[each] for each in shared))
                    setting = setting_of(playground, common, Given(*(values[each] for each in side.inputs)))
                    for now in playground.draw(setting):
                        said = f"{side.name}: step {now.step} of {now.steps}"
                        yield {side.samples: _image(now, side.name), side.cost: _cost(now), status: said}
                    yield {side.config: playground.yaml(setting)}
                    found.append(now)
            pair = found if len(found) == len(sides) else None
            if failures.failed:
                yield {status: next(iter(failures.failed.values()))}
            else:
                yield {status: "Finished.", drawn: pair, both: _both(pair, values[view])}

        inputs = {*shared, view, *(each for side in sides for each in side.inputs)}
        outputs = [status, drawn, both]
        outputs += [each for side in sides for each in (side.samples, side.cost, side.config)]
        one_at_a_time: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "drawing", "show_progress": "hidden"}
        stopped: set[str | None] = set()  # sessions, until they ask again

        def begin(request: gr.Request) -> str:
            stopped.discard(request.session_hash)
            return "Waiting."

        def end(request: gr.Request) -> str:
            stopped.add(request.session_hash)
            return "Stopped."

        def explain(request: gr.Request) -> str:
            """Return why a drawing ended early: gradio reports stops and full queues alike, other errors are caught."""
            if request.session_hash in stopped:
                return "Stopped."
            return f"Nothing was drawn: the queue is full (--queue {queue}); try again later."

        events = [
            button.click(begin, None, status, queue=False).then(
                lambda values, chosen=chosen: (yield from draw_sides(chosen, values)), inputs, outputs, **one_at_a_time
            )
            for button, chosen in ((draw, sides[:1]), (compare, sides))
        ]
        for event in events:
            event.failure(explain, None, status, queue=False)
        stop.click(end, None, status, cancels=events, queue=False)
        view.change(_both, [drawn, view], both, queue=False)
    page.queue(max_size=queue, api_open=False)
    return page


def _controls(playground: Playground, name: str) -> tuple[Any, ...]:
    """Add what can be changed on one side: the first fields of `_Side`."""
    with gr.Column(min_width=320):
        model = gr.Dropdown(list(playground.models), label=f"Model ({name})")
        described = [(f"{key}: {method.title}", key) for key, method in playground.methods.items()]
        guidance = gr.Dropdown([("none", NONE), *described], value=NONE, label=f"Guidance ({name})")
        summary = gr.Markdown()
        weight = gr.Slider(0, 10, 1, step=0.05, label=f"Weight ({name}), 1 is off", visible=False)
        most = max((len(method.parameters) for method in playground.methods.values()), default=0)
        fields = [gr.Textbox(visible=False) for _ in range(most)]
        with gr.Row():
            names = [(title, key) for key, title in offered_samplers(playground.sampler).items()]
            sampler = gr.Dropdown(names, value=names[0][1], label=f"Sampler ({name})", min_width=140)
            steps = gr.Slider(1, 250, playground.steps, step=1, label=f"Steps ({name})", min_width=140)
    return name, [model, guidance, sampler, steps, weight, *fields], guidance, summary, weight, fields


def _shown(name: str) -> tuple[Any, ...]:
    """Add what is shown of one side: the last fields of `_Side`."""
    with gr.Column(min_width=320):
        samples = gr.HTML(elem_id=f"samples-{name}", elem_classes="samples")
        cost = gr.Markdown(elem_id=f"cost-{name}")
        config = gr.Code(
            language="yaml",
            interactive=False,
            elem_id=f"config-{name}",
            label=f"Config ({name})",
            lines=1,
            max_lines=12,
        )
    return samples, cost, config


def _on_method(playground: Playground, side: _Side) -> None:
    """Show the parameters of a guidance when it is chosen."""

    def change(name: str) -> list[Any]:
        method = playground.methods.get(name)
        if method is None:
            hidden = [gr.update(visible=False, value="") for _ in side.fields]
            return ["", gr.update(visible=False), *hidden]
        slider = next((each for each in method.parameters if each.is_weight), None)
        shown = gr.update(visible=slider is not None, **({} if slider is None else {"value": slider.value}))
        others = [each for each in method.parameters if each is not slider]
        fields = [
            gr.update(
                visible=True, label=f"{each.place} ({side.name})", value=parameter_text(each), info=each.help or ""
            )
            for each in others
        ]
        hidden = [gr.update(visible=False, value="") for _ in side.fields[len(fields) :]]
        said = "\n\n".join(escape(each) for each in (method.summary, method.note) if each)
        return [said, shown, *fields, *hidden]

    outputs = [side.summary, side.weight, *side.fields]
    side.guidance.change(change, side.guidance, outputs, show_progress="hidden", queue=False)


def _source(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _image(drawn: Drawn, name: str) -> str:
    state = "samples" if drawn.finished else "clean estimates"
    return f'<img alt="{state}, {name}" src="{_source(render_samples(drawn.x))}">'


def _cost(drawn: Drawn) -> str:
    total = round(drawn.calls * len(drawn.x))
    return f"{drawn.calls:g} network calls a sample, {total:,} in all; {drawn.seconds:.2f} seconds"


def _both(drawn: Sequence[Drawn] | None, view: str) -> str:
    """Return the comparison of two sets of samples, empty without."""
    if drawn is None:
        return ""
    left, right = (each.x for each in drawn)
    if view == "difference":
        title = "absolute difference, the largest in white"
        return f'<div class="compare"><img alt="{title}" src="{_source(difference(left, right))}"><p>{title}</p></div>'
    images = [
        f'<img class="{kind}" alt="" src="{_source(render_samples(x))}">'
        for kind, x in (("under", left), ("over", right))
    ]
    return (
        f'<div class="compare"><div class="stack" style="--cut: 50%">{"".join(images)}<div class="line"></div></div>'
        f'<input type="range" min="0" max="100" value="50" oninput="{_SLIDE}" '
        'aria-label="boundary between left and right"></div>'
    )
