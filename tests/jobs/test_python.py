"""The functions of the package: they can be found, cost nothing until they are used, say what they
take, and give what the commands give.
"""

from __future__ import annotations

import doctest
import inspect
import json
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, assert_type, cast

import pytest
import torch
from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin

import llava_remap
from llava_remap import (
    Difference,
    Inspection,
    Job,
    Problem,
    RemapError,
    Result,
    Verification,
    apply,
    convert,
    diff,
    load_model,
    plan,
    revert,
    verify,
)
from llava_remap.core.problem import Mark
from tests.conftest import CLIP, HEAVY, MANIFESTS, RELEASED, Changed, Run
from tools.docs.play import set_up

SOURCE = RELEASED / "safetensors"
SOURCES = {"model": SOURCE, "vision_tower": CLIP}
#: The same for the command line.
GIVEN = ("--source", SOURCE, "--source", f"vision_tower={CLIP}")
#: The functions, in an order in which their examples can be run in one folder.
FUNCTIONS = ("plan", "apply", "convert", "verify", "revert", "inspect", "diff", "load_model")


def test_dir_lists_what_is_public_and_nothing_else() -> None:
    assert dir(llava_remap) == sorted(llava_remap.__all__)
    assert {*FUNCTIONS, "InMemory", "Problem", "RemapError"} <= set(dir(llava_remap))
    for name in dir(llava_remap):
        assert getattr(llava_remap, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'aply'"):
        _ = llava_remap.aply  # type: ignore[attr-defined]


def test_importing_and_listing_imports_nothing_heavy() -> None:
    program = (
        "import sys, llava_remap\ndir(llava_remap)\nllava_remap.Problem, llava_remap.RemapError\n"
        f"llava_remap.InMemory\nprint(sorted({HEAVY | {'pydantic', 'yaml', 'rich', 'typer'}!r} & "
        "set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"


def test_no_module_takes_the_place_of_a_function() -> None:
    """Python makes an imported module an attribute of its package."""
    modules = {module.name for module in pkgutil.iter_modules(llava_remap.__path__)}
    assert not modules & set(llava_remap.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_takes_and_gives(name: str) -> None:
    function = getattr(llava_remap, name)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty
    text = inspect.getdoc(function) or ""
    assert ("Raises:" in text, ">>> " in text) == (True, True)


def test_type_checkers_see_the_types() -> None:
    """`make check` reads this; the values are those of the types."""
    assert_type(plan("llava-v1.5", MANIFESTS / "llava-v1.5-7b.json", dry_run=True), Job)
    functions: list[Callable[..., object]] = [apply, verify, revert]
    assert [inspect.signature(function).return_annotation for function in functions] == [
        "Result",
        "Verification",
        "Result",
    ]
    if False:
        assert_type(apply("", {}), Result)
        assert_type(verify(""), Verification)
        assert_type(llava_remap.inspect(""), Inspection)
        assert_type(diff("", ""), Difference)
        assert_type(load_model(""), PreTrainedModel)
        assert_type(load_model("", processor=True), tuple[PreTrainedModel, ProcessorMixin])
    assert (Path(llava_remap.__file__).parent / "py.typed").is_file()


def test_the_examples_of_the_functions_are_true(tmp_path: Path) -> None:
    set_up(tmp_path)
    for name in FUNCTIONS:
        function = getattr(llava_remap, name)
        names = {function.__name__: function}
        for test in doctest.DocTestFinder(recurse=False).find(function, name, globs=names):
            assert doctest.DocTestRunner().run(test).failed == 0


def steady(document: Any) -> Any:
    """A document without the facts of one run on one machine."""
    if isinstance(document, Mapping):
        varying = {"seconds", "memory", "memory_parts", "disk"}
        return {key: steady(value) for key, value in document.items() if key not in varying}
    return [steady(item) for item in document] if isinstance(document, list) else document


def as_json(document: object) -> Any:
    """A document of Python as JSON can hold it; nothing else is in it."""
    return json.loads(json.dumps(document))


def test_results_are_the_documents_of_the_commands(run: Run) -> None:
    ran = run("apply", "llava-v1.5", *GIVEN, "--output", "out", "--dry-run", "--format", "json")
    job = plan("llava-v1.5", SOURCES, "out")
    assert steady(as_json(job.to_json())) == steady(ran.json)

    result = job.run()
    assert steady(as_json(result.to_json())).keys() == {*steady(ran.json), "result"}
    Path("out").rename("first")
    ran = run("apply", "llava-v1.5", *GIVEN, "--output", "out", "--format", "json")
    assert steady(as_json(result.to_json())) == steady(ran.json)
    assert result.to_json()["predicted"]["disk"] == ran.json["predicted"]["disk"]

    against = ("--against", SOURCE, "--against", f"vision_tower={CLIP}")
    ran = run("verify", "out", *against, "--format", "json")
    assert as_json(verify("out", SOURCES).to_json()) == ran.json

    ran = run("revert", "out", "--output", "back", "--format", "json")
    Path("back").rename("other")
    assert steady(as_json(revert("out", "back").to_json())) == steady(ran.json)

    way_back = ("revert", "out", "--rules", "llava-v1.5", "--output", "by-rules")
    ran = run(*way_back, "--format", "json")
    Path("by-rules").rename("another")
    done = revert("out", "by-rules", rules="llava-v1.5")
    assert steady(as_json(done.to_json())) == steady(ran.json)

    ran = run("convert", SOURCE, *GIVEN[2:], "--output", "again", "--format", "json")
    Path("again").rename("yet-again")
    done = convert(SOURCE, "again", sources=[f"vision_tower={CLIP}"])
    assert steady(as_json(done.to_json())) == steady(ran.json)

    ran = run("inspect", SOURCE, "--format", "json")
    assert as_json(llava_remap.inspect(SOURCE).to_json()) == ran.json

    ran = run("diff", "out", "first", "--format", "json")
    assert as_json(diff("out", "first").to_json()) == ran.json


def test_a_plan_that_is_refused_is_the_document_of_the_command(run: Run, changed: Changed) -> None:
    source = changed(tensors=lambda tensors: tensors.pop("model.norm.weight"))
    given = ("--source", source, "--source", f"vision_tower={CLIP}", "--output", "out")
    ran = run("apply", "llava-v1.5", *given, "--format", "json")
    job = plan("llava-v1.5", {"model": source, "vision_tower": CLIP}, "out")
    assert steady(as_json(job.to_json())) == steady(ran.json)
    with pytest.raises(RemapError) as caught:
        job.run()
    assert caught.value.problems == job.plan.problems


def test_a_problem_has_a_field_for_each_fact() -> None:
    problem = Problem("LR202", "`x` is wrong.", "Mend it.", place=Mark("mine.yaml", 3, 5))
    assert problem.to_json() == {
        "code": "LR202",
        "title": problem.title,
        "cause": "`x` is wrong.",
        "fix": "Mend it.",
        "place": {"file": "mine.yaml", "line": 3, "column": 5},
        "message": problem.message,
        "names": [],
    }
    assert str(RemapError([problem, problem])).splitlines() == 2 * [
        f"LR202 {problem.title}: mine.yaml:3:5 `x` is wrong. Mend it."
    ]


def test_the_repr_of_an_inspection_is_a_line() -> None:
    found = llava_remap.inspect(RELEASED / "sharded")
    assert repr(found) == f"<Inspection of {str(RELEASED / 'sharded')!r}: fitting=['llava-v1.5']>"


def test_the_repr_of_a_job_holds_no_list_of_tensors() -> None:
    job = plan("llava-v1.5", SOURCES, "out")
    assert len(repr(job)) < 2000
    assert "embed_tokens" not in repr(job)


def test_the_processor_is_that_of_the_folder() -> None:
    from PIL import Image

    model, processor = load_model("llava-v1.5", SOURCES, processor=True)
    apply("llava-v1.5", SOURCES, "out")
    other = AutoProcessor.from_pretrained("out")
    assert type(processor) is type(other)
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    texts = [p.apply_chat_template(talk, add_generation_prompt=True) for p in (processor, other)]
    assert texts[0] == texts[1]
    picture = Image.radial_gradient("L").convert("RGB").resize((50, 30))
    one, two = (p(text=texts[0], images=picture, return_tensors="pt") for p in (processor, other))
    assert one.keys() == two.keys()
    assert all(one[key].equal(two[key]) for key in one)
    assert model(**one).logits.isfinite().all()


def test_a_model_without_tokenizer_has_no_processor(changed: Changed) -> None:
    source = changed()
    for path in source.glob("*token*"):
        path.unlink()
    sources = {"model": source, "vision_tower": CLIP}
    assert load_model("llava-v1.5", sources) is not None
    with pytest.raises(RemapError) as caught:
        load_model("llava-v1.5", sources, processor=True)
    assert [problem.code for problem in caught.value.problems] == ["LR408"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "bf16"}, "dtype='bf16'"),
        ({"vocab": 0}, "vocab=0"),
        ({"max_shard_nbytes": "5GB"}, "max_shard_nbytes='5GB'"),
        ({"jobs": "2"}, "jobs='2'"),
        ({"verify": True}, "verify=True"),
    ],
)
def test_an_argument_of_another_kind_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RemapError) as caught:
        apply("llava-v1.5", SOURCES, "out", **options)
    [problem] = caught.value.problems
    assert (problem.code, words in problem.cause) == ("LR211", True), problem.cause


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ({"dtype": "bf16"}, "bfloat16"),
        ({"dtype": torch.bfloat16}, "bfloat16"),
        ({"vocab": "padd"}, "pad"),
        ({"projector_form": "identiy"}, "identity"),
        ({"layout": "module5.6"}, "module-5.6"),
        ({"verify": "all"}, "full"),
    ],
    ids=str,
)
def test_a_value_that_is_nearly_one(options: dict[str, Any], meant: str) -> None:
    """As on the command line."""
    with pytest.raises(RemapError) as caught:
        apply("llava-v1.5", SOURCES, "out", **options)
    [problem] = caught.value.problems
    assert (problem.code, problem.fix) == ("LR211", f"Did you mean {meant}?")


@pytest.mark.parametrize("given", [None, 5, b"folder"], ids=repr)
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (verify, "folder"),
        (revert, "folder"),
        (load_model, "rules"),
        (lambda given: plan(given, SOURCES), "rules"),
        (lambda given: convert(SOURCE, rules=cast(Any, given or 0)), "rules"),
        (lambda given: plan("llava-v1.5", SOURCES, cast(Any, given or 0)), "output"),
        (llava_remap.inspect, "a source"),
        (convert, "a source"),
        (lambda given: diff(SOURCE, given), "a source"),
        (lambda given: apply("llava-v1.5", {"model": given}), "a source"),
    ],
)
def test_what_is_no_path_is_named(call: Callable[[Any], Any], name: str, given: object) -> None:
    with pytest.raises(RemapError) as caught:
        call(given)
    [problem] = caught.value.problems
    assert (problem.code, problem.cause.startswith(f"{name} is of type ")) == ("LR211", True)


def test_revert_names_what_is_missing() -> None:
    for options in ({}, {"output": "back", "verify": "full"}):
        with pytest.raises(RemapError) as caught:
            revert("out", **options)  # type: ignore[arg-type]
        assert [problem.code for problem in caught.value.problems] == ["LR211"]
