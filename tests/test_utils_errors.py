"""The one sentence made of a nested report."""

from __future__ import annotations

import pytest
from torch._inductor.exc import InvalidCxxCompiler

from lightning_guide.utils.errors import as_value_error, explain_runtime_error, one_line

REPORT = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'LightningModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'DiffusionModule':
        Parser key "denoiser":
          Expected a dot import path string: LogDensityMPL
    - Expected a <class 'NoneType'>. Got value: {'auto': Evaluation(
        (positive): Main()
      )}
  Given value type: <class 'dict'>
  Given value: {'class_path': 'DiffusionModule'}"""


def test_keys_and_mistake_stay_and_all_around_them_goes() -> None:
    said = "model.denoiser: Expected a dot import path string: LogDensityMPL"
    assert one_line(REPORT) == said
    assert one_line(REPORT, ["Points", "LogDensityMLP"]) == f"{said} (no such class; did you mean LogDensityMLP?)"


UNKNOWN = """Parser key "evaluation":
  Problem with given class_path 'lightning_guide.evaluation.Evaluation':
    Parser key "guidance":
      Does not validate against any of the Union subtypes
      Subtypes: [<class 'lightning_guide.denoiser.Denoiser'>, <class 'NoneType'>]
      Errors:
        - Problem with given class_path 'lightning_guide.guidance.Autoguidance':
            Option 'wight' is not accepted
        - Problem with given class_path 'lightning_guide.guidance.Autoguidance':
            Parser key "weight":
              Expected a <class 'float'>. Got value: big"""


def test_a_class_is_named_where_no_key_says_more() -> None:
    assert one_line(UNKNOWN) == (
        "evaluation.guidance (Autoguidance): Option 'wight' is not accepted; weight: Expected float. Got value: big"
    )


def test_what_is_vague_is_said_where_nothing_else_is() -> None:
    vague = 'Parser key "guider":\n  Not a valid subclass of Denoiser. Got value: 3\n  Subclass types expect one of:\n'
    vague += "  - a class path (str)\n  - a dict with class_path entry"
    assert one_line(vague) == "guider: Not a valid subclass of Denoiser. Got value: 3"
    assert one_line(f"{vague}\n- Expected a <class 'float'>") == "guider: Expected float"


def test_whatever_fails_is_told_with_its_kind() -> None:
    with pytest.raises(ValueError, match="^KeyError: 'age'$"), as_value_error():
        raise KeyError("age")
    with pytest.raises(ValueError, match="^weights are negative$"), as_value_error():
        raise ValueError("weights are negative")
    with pytest.raises(SystemExit), as_value_error():
        raise SystemExit(3)


def test_an_ordinary_message_stays_as_it_is() -> None:
    assert one_line("no snapshot of images=7; available: images 16, 32") == (
        "no snapshot of images=7; available: images 16, 32"
    )
    assert one_line("Errors:\n  Subtypes: x") == "Errors: Subtypes: x"


def test_a_missing_compiler_is_said() -> None:
    said = explain_runtime_error(f"InvalidCxxCompiler: {InvalidCxxCompiler()}\nSet TORCHDYNAMO_VERBOSE=1")
    assert said is not None and said.startswith("compile: true needs a compiler (No working C++ compiler found")
    assert "TORCHDYNAMO" not in said
