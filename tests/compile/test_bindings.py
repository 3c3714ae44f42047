"""The lean registrations, made out of a small registration file in upstream's manner."""

from __future__ import annotations

import pytest

from dca.catalogue.recipes import Group, KernelDtype, KernelFunctions, Module, Stubs
from dca.compile import bindings
from dca.foundation.errors import DcaError

UPSTREAM = """\
#include "cache.h"
#include "ops.h"
#include "core/registration.h"

#include <torch/library.h>

// A comment; with a semicolon, a "quote and a { brace.
/* ops.def("commented_out() -> ()"); */

TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) {
  // vLLM custom ops

  ops.def("weak_ref(Tensor input) -> Tensor");
  ops.impl("weak_ref", torch::kCUDA, &weak_ref);

  // Two statements on one line; and a string with a semicolon and braces.
  ops.def("norm(Tensor! out, str mode=';}{') -> ()"); ops.impl("norm", torch::kCUDA, &norm);

  ops.def(
      "rotary(Tensor positions, Tensor! query,"
      "       Tensor!? key, int head_size,"
      "       bool is_neox) -> ()");
  ops.impl(
      "rotary",
      torch::kCUDA,
      &rotary);

#ifndef USE_ROCM
  ops.def("only_cuda(Tensor x) -> Tensor");
  ops.impl("only_cuda", torch::kCUDA, &only_cuda);
  #ifdef USE_ROCM
  ops.def("never(Tensor x) -> Tensor");
  #endif  // USE_ROCM
#else
  ops.def("only_rocm(Tensor x) -> Tensor");
  ops.impl("only_rocm", torch::kCUDA, &only_rocm);
#endif

#ifdef USE_ROCM
  ops.impl("both", torch::kCUDA, &both_rocm);
  #if defined(DEEP)
  ops.impl("both", torch::kCUDA, &both_deep);
  #else
  ops.impl("both", torch::kCUDA, &both_flat);
  #endif
#else
  ops.def("both(Tensor x) -> Tensor", {torch::Tag::needs_fixed_stride_order});
  ops.impl("both", torch::kCUDA, [](const torch::Tensor& x) { auto y = x; return y; });
#endif

#if defined(ENABLE_NEW) && CUDA_VERSION >= 12000
  ops.def("guarded(Tensor x) -> Tensor");
  ops.impl("guarded", torch::kCUDA, &guarded);
#endif

  // Capability questions.
  ops.def("supports_fp8(int cuda_device_capability) -> bool");
  ops.impl("supports_fp8", &supports_fp8);
  ops.def(
      "supports_pair("
      "int a, SymInt b) -> bool");
  ops.impl("supports_pair", &supports_pair);
  ops.def("supports_any() -> bool");
  ops.impl("supports_any", &supports_any);
  ops.def("supports_tensor(Tensor x) -> bool");
  ops.impl("supports_tensor", &supports_tensor);
}

TORCH_LIBRARY_EXPAND(CONCAT(TORCH_EXTENSION_NAME, _cache_ops), cache_ops) {
  // Cache ops
  cache_ops.def("swap(Tensor src, Tensor! dst) -> ()");
  cache_ops.impl("swap", torch::kCUDA, &swap);
  cache_ops.def("weak_ref(Tensor input) -> Tensor");
  cache_ops.impl("weak_ref", torch::kCUDA, &other_weak_ref);
}

TORCH_LIBRARY_EXPAND(
    CONCAT(TORCH_EXTENSION_NAME, _utils), utils) {
  utils.def("attribute(int a, int b) -> int", &attribute);
}

#ifndef USE_ROCM
TORCH_LIBRARY_EXPAND(CONCAT(TORCH_EXTENSION_NAME, _custom_ar), custom_ar) {
  custom_ar.def("meta_size", &meta_size);
}
#endif

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
"""


def generate(*ops: str, answers: dict[str, bool] | None = None, undefined: tuple[str, ...] = ("USE_ROCM",)) -> str:
    half = len(ops) // 2
    groups = {
        "one": Group(module="_C", why="x", ops=ops[:half]),
        "two": Group(module="_C", why="x", ops=ops[half:], answers=answers or {}),
    }
    return bindings.generate(UPSTREAM, "_C", groups, undefined)


def statements(text: str) -> list[str]:
    """The lines that register something, without the spaces around them."""
    return [line.strip() for line in text.splitlines() if ".def(" in line or ".impl(" in line]


def flat(text: str) -> str:
    return " ".join(text.split())


def test_only_the_wanted_ops_are_registered() -> None:
    assert statements(generate("_C::weak_ref")) == [
        'ops.def("weak_ref(Tensor input) -> Tensor");',
        'ops.impl("weak_ref", torch::kCUDA, &weak_ref);',
    ]


def test_an_op_of_the_same_name_in_another_namespace_is_another_op() -> None:
    assert statements(generate("_C_cache_ops::weak_ref"))[1] == (
        'cache_ops.impl("weak_ref", torch::kCUDA, &other_weak_ref);'
    )
    assert len(statements(generate("_C_cache_ops::weak_ref"))) == 2


def test_text_of_upstream_is_kept_letter_by_letter() -> None:
    text = generate("_C::rotary")
    start, end = UPSTREAM.index('  ops.def(\n      "rotary('), UPSTREAM.index("\n\n#ifndef USE_ROCM\n  ops.def")
    assert UPSTREAM[start:end] in text


def test_the_includes_come_first_and_the_registration_of_the_module_last() -> None:
    text = generate("_C::weak_ref")
    lines = [line for line in text.splitlines() if line]
    assert lines[1:5] == [
        '#include "cache.h"',
        '#include "ops.h"',
        '#include "core/registration.h"',
        "#include <torch/library.h>",
    ]
    assert lines[-1] == "REGISTER_EXTENSION(TORCH_EXTENSION_NAME)"
    assert text.count("REGISTER_EXTENSION") == 1
    assert text.endswith("\n")


def test_comments_go_whatever_is_in_them() -> None:
    text = generate("_C::weak_ref", "_C::norm")
    assert "commented_out" not in text
    assert "Two statements" not in text
    assert text.count("TORCH_LIBRARY_EXPAND") == 1


def test_semicolons_and_braces_in_strings_end_nothing() -> None:
    text = flat(generate("_C::norm", "_C::rotary"))
    assert """ops.def("norm(Tensor! out, str mode=';}{') -> ()");""" in text
    assert 'ops.impl("norm", torch::kCUDA, &norm);' in text
    assert text.count("ops.def(") == text.count("ops.impl(") == 2


def test_of_two_statements_on_a_line_only_the_wanted_one_is_kept() -> None:
    line = '  ops.def("a() -> int"); ops.def("b() -> int");'
    upstream = f"TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) {{\n{line}\n}}\n"
    group = Group(module="_C", why="x", ops=("_C::b",))
    text = bindings.generate(upstream, "_C", {"one": group}, ())
    assert statements(text) == ['ops.def("b() -> int");']


def test_statements_inside_of_a_lambda_end_nothing() -> None:
    text = flat(generate("_C::both"))
    assert 'ops.impl("both", torch::kCUDA, [](const torch::Tensor& x) { auto y = x; return y; });' in text
    assert "{torch::Tag::needs_fixed_stride_order}" in text


def test_conditionals_on_a_macro_that_is_never_defined_are_resolved() -> None:
    text = generate("_C::only_cuda", "_C::both")
    assert "USE_ROCM" not in text
    assert "both_rocm" not in text
    assert "both_deep" not in text
    assert "DEEP" not in text


@pytest.mark.parametrize("op", ["_C::only_rocm", "_C::never", "_C::commented_out"])
def test_an_op_that_this_build_does_not_have_is_missing(op: str) -> None:
    with pytest.raises(DcaError) as refused:
        generate("_C::weak_ref", op)
    assert refused.value.code == "DCA-604"
    assert op in refused.value.what
    assert "weak_ref" not in refused.value.what


def test_a_macro_that_may_be_defined_is_left_to_the_compiler() -> None:
    text = generate("_C::only_cuda", undefined=())
    assert "#ifndef USE_ROCM" in text
    assert text.count("#if") == text.count("#endif")


def test_other_conditionals_stay_around_their_ops() -> None:
    lines = [line.strip() for line in generate("_C::guarded").splitlines()]
    at = lines.index("#if defined(ENABLE_NEW) && CUDA_VERSION >= 12000")
    assert lines[at + 1 : at + 4] == [
        'ops.def("guarded(Tensor x) -> Tensor");',
        'ops.impl("guarded", torch::kCUDA, &guarded);',
        "#endif",
    ]


@pytest.mark.parametrize("opening", ["#ifdef", "#ifndef"])
def test_a_second_branch_with_a_condition_of_its_own_is_not_lost(opening: str) -> None:
    upstream = (
        "TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) {\n"
        f'{opening} USE_ROCM\n  ops.def("first() -> int");\n'
        '#elif defined(OTHER)\n  ops.def("second() -> int");\n'
        '#else\n  ops.def("third() -> int");\n#endif\n}\n'
    )
    ops = ("_C::first",) if opening == "#ifndef" else ("_C::second", "_C::third")
    text = bindings.generate(upstream, "_C", {"one": Group(module="_C", why="x", ops=ops)}, ("USE_ROCM",))
    assert len(statements(text)) == len(ops)
    assert text.count("#if") == text.count("#endif")
    assert "#elif" not in text


def test_a_block_without_wanted_ops_is_left_out() -> None:
    text = generate("_C_utils::attribute")
    assert text.count("TORCH_LIBRARY_EXPAND") == 1
    assert statements(text) == ['utils.def("attribute(int a, int b) -> int", &attribute);']
    assert "CONCAT(TORCH_EXTENSION_NAME, _utils)" in text


def test_every_block_with_a_wanted_op_is_closed() -> None:
    text = generate("_C::weak_ref", "_C_cache_ops::swap", "_C_utils::attribute", "_C_custom_ar::meta_size")
    assert text.count("TORCH_LIBRARY_EXPAND") == 4
    assert text.count("{") == text.count("}")


def test_a_capability_question_is_answered_without_a_kernel() -> None:
    text = generate("_C::weak_ref", answers={"_C::supports_fp8": False, "_C::supports_any": True})
    assert statements(text)[2:] == [
        'ops.def("supports_fp8(int cuda_device_capability) -> bool");',
        'ops.impl("supports_fp8", [](int64_t) -> bool { return false; });',
        'ops.def("supports_any() -> bool");',
        'ops.impl("supports_any", []() -> bool { return true; });',
    ]
    assert "&supports" not in text


def test_a_question_whose_schema_stands_on_two_lines_is_answered() -> None:
    text = generate("_C::weak_ref", answers={"_C::supports_pair": True})
    assert 'ops.impl("supports_pair", [](int64_t, int64_t) -> bool { return true; });' in text


def test_a_question_about_a_tensor_cannot_be_answered() -> None:
    with pytest.raises(DcaError) as refused:
        generate("_C::weak_ref", answers={"_C::supports_tensor": True})
    assert refused.value.code == "DCA-604"
    assert "supports_tensor" in refused.value.what


def test_a_question_that_upstream_does_not_ask_is_missing() -> None:
    with pytest.raises(DcaError) as refused:
        generate("_C::weak_ref", answers={"_C::supports_tea": True})
    assert refused.value.code == "DCA-604"
    assert "_C::supports_tea" in refused.value.what


def test_every_missing_op_is_named() -> None:
    with pytest.raises(DcaError) as refused:
        generate("_C::zeta", "_C::alpha", "_C_cache_ops::norm")
    assert refused.value.code == "DCA-604"
    assert "_C::alpha, _C::zeta, _C_cache_ops::norm" in refused.value.what


def test_a_file_that_ends_in_a_block_is_refused() -> None:
    with pytest.raises(DcaError) as refused:
        bindings.generate(UPSTREAM[: UPSTREAM.index("  ops.def(\n")], "_C", {}, ("USE_ROCM",))
    assert refused.value.code == "DCA-604"


def test_a_module_of_another_name_has_its_own_namespaces() -> None:
    group = Group(module="_moe_C", why="x", ops=("_moe_C::weak_ref", "_moe_C_cache_ops::swap"))
    assert len(statements(bindings.generate(UPSTREAM, "_moe_C", {"moe": group}, ("USE_ROCM",)))) == 4


# --- stubs ---------------------------------------------------------------------------------------------------

SPEC = Stubs(
    headers=("flash.h", "types.h"),
    namespace="FLASH",
    functions=(
        KernelFunctions(names=("run_", "run_split"), parameters="Params &, cudaStream_t"),
        KernelFunctions(names=("run_sparse",), parameters="Sparse &", head_dims=(64,)),
    ),
    dtypes={
        "float16": KernelDtype(type="half_t", sources="*_fp16_*"),
        "bfloat16": KernelDtype(type="bf16_t", sources="*_bf16_*"),
    },
    head_dims=(32, 64, 256),
)
MODULE = Module(path="pkg/flash/_fa_C.abi3.so", stubs=SPEC)
ADDING: dict[int | str, str] = {
    32: "--profile full",
    64: "--with fa-64",
    256: "--profile full",
    "bfloat16": "--with fa-64",
    "float16": "--with fp16",
}
GROUPS = {
    "fa-64": Group(module="_fa_C", why="x", head_dims=(64,), dtypes=("bfloat16",)),
    "fp16": Group(module="_fa_C", why="x", dtypes=("float16",)),
}


def stubs(*chosen: str, spec: Stubs = SPEC) -> dict[str, str]:
    """The text of each stub, by the instantiation that it stands for."""
    text = bindings.stubs(MODULE, spec, [GROUPS[name] for name in chosen], ADDING)
    lines = [line for line in text.splitlines() if "template <>" in line]
    by_name = {line.split("void ")[1].split("(")[0]: line for line in lines}
    assert len(by_name) == len(lines)
    return by_name


def test_every_instantiation_that_is_left_out_has_one_stub() -> None:
    sizes = {"run_": (32, 64, 256), "run_split": (32, 64, 256), "run_sparse": (64,)}
    assert stubs().keys() == {
        f"{function}<{dtype.type}, {dimension}, {causal}>"
        for function, dimensions in sizes.items()
        for dtype in SPEC.dtypes.values()
        for dimension in dimensions
        for causal in ("false", "true")
    }


def test_a_kernel_of_a_chosen_head_dimension_and_data_type_has_no_stub() -> None:
    compiled = stubs().keys() - stubs("fa-64").keys()
    assert compiled == {
        f"{name}<bf16_t, 64, {causal}>" for name in ("run_", "run_split", "run_sparse") for causal in ("false", "true")
    }
    # A data type adds itself in every head dimension that is there.
    compiled = stubs("fa-64").keys() - stubs("fa-64", "fp16").keys()
    assert compiled == {
        f"{name}<half_t, 64, {causal}>" for name in ("run_", "run_split", "run_sparse") for causal in ("false", "true")
    }


@pytest.mark.parametrize(
    ("chosen", "kernel", "says"),
    [
        (
            ["fa-64"],
            "run_<half_t, 64, true>",
            '"float16 is not in this lean build of _fa_C.abi3.so; build with --with fp16',
        ),
        ([], "run_<bf16_t, 64, true>", "head dimension 64 in bfloat16 is not in"),
        ([], "run_<half_t, 64, true>", "build with --with fa-64 --with fp16"),
        # A build of everything takes no groups.
        ([], "run_<half_t, 256, true>", 'build with --profile full")'),
        (["fa-64"], "run_<bf16_t, 256, true>", "head dimension 256 is not in"),
        (["fa-64"], "run_<bf16_t, 256, true>", "build with --profile full"),
        (["fa-64"], "run_<half_t, 256, true>", "head dimension 256 in float16 is not in"),
    ],
)
def test_a_stub_says_what_is_missing_and_which_build_has_it(chosen: list[str], kernel: str, says: str) -> None:
    assert 'TORCH_CHECK(false, "' in (stub := stubs(*chosen)[kernel])
    assert says in stub


def test_a_stub_of_what_no_build_has_names_none() -> None:
    text = bindings.stubs(MODULE, SPEC, (), {})
    assert "build with" not in text
    assert 'head dimension 256 in float16 is not in this lean build of _fa_C.abi3.so");' in text


def test_a_stub_has_the_parameters_of_its_function() -> None:
    assert "run_<half_t, 64, true>(Params &, cudaStream_t)" in stubs()["run_<half_t, 64, true>"]
    assert "run_sparse<half_t, 64, true>(Sparse &)" in stubs()["run_sparse<half_t, 64, true>"]


def test_stubs_stand_in_the_namespace_behind_their_headers() -> None:
    lines = bindings.stubs(MODULE, SPEC, (), ADDING).splitlines()
    assert [line for line in lines if line.startswith("#include")][1:] == ['#include "flash.h"', '#include "types.h"']
    assert lines.index("namespace FLASH {") < min(at for at, line in enumerate(lines) if "template" in line)
    assert "\n".join(lines).count("{") == "\n".join(lines).count("}")


def test_stubs_of_a_source_without_a_namespace_stand_at_the_top() -> None:
    bare = SPEC.model_copy(update={"namespace": ""})
    assert "namespace" not in bindings.stubs(MODULE, bare, (), ADDING)
    assert stubs(spec=bare) == stubs()
