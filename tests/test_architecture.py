"""The rules of the tree, read from the source with `ast`: who may import whom, what stays light, what stays out.

Each rule is a function from modules to violations, `path:line: what is wrong`. It is run on the project, where it must
find nothing, and on a snippet that breaks it, where it must find that.
"""

import ast
import graphlib
import io
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "policies": {"policies"},
    "reward": {"reward", "policies"},
    "rollout": {"rollout", "policies"},
    "rlhf": {"rlhf", "rollout", "reward", "policies"},
}
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "ray", "wandb"}
# Which files may import a library: one, or one for each of its trainers.
HOMES = {
    "wandb": ("rlhf/runtime/sinks/weights_and_biases.py",),
    "wandb_workspaces": ("rlhf/dashboard/workspace.py",),
    "mlflow": ("rlhf/runtime/sinks/mlflow.py",),
    "trl": ("rlhf/trainers/trl_sft.py", "rlhf/trainers/trl_dpo.py"),
    "lm_eval": ("rlhf/evaluation/harness.py",),
    "datasketch": ("rlhf/corpus/near_duplicates.py",),
    "bitsandbytes": ("policies/quantization.py",),
}
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
REASON_LETTERS = 10


@dataclass(frozen=True)
class Import:
    """One imported module, with `from a import b` read as `a.b` where that is a module of ours."""

    target: str
    line: int
    is_local: bool


@dataclass(frozen=True)
class Module:
    path: str
    text: str

    @property
    def name(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def comments(self) -> dict[int, str]:
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}


Modules = Mapping[str, Module]
Rule = Callable[[Modules], list[str]]


def modules_of(*modules: Module) -> Modules:
    return {module.name: module for module in modules}


def imports_of(module: Module, known: Modules) -> Iterator[Import]:
    local = {id(inner) for node in ast.walk(module.tree) if _is_function(node) for inner in ast.walk(node)}
    for node in ast.walk(module.tree):
        is_local = id(node) in local
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, is_local) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield Import(inner if inner in known else base, node.lineno, is_local)


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def _absolute(node: ast.ImportFrom, module: Module) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    is_package = module.path.endswith("__init__.py")
    parents = parts[: len(parts) - node.level + is_package]
    return ".".join([*parents, *filter(None, [node.module])])


def wrong_directions(modules: Modules) -> list[str]:
    """rlhf -> rollout, reward -> policies -> nothing of ours."""
    return [
        f"{module.path}:{found.line}: {module.package} must not import {found.target}"
        for module in modules.values()
        for found in imports_of(module, modules)
        if (target := found.target.partition(".")[0]) in MAY_IMPORT and target not in MAY_IMPORT[module.package]
    ]


def impure_algorithms(modules: Modules) -> list[str]:
    """rlhf/algorithms imports torch, the standard library and itself."""
    allowed = {"torch", *sys.stdlib_module_names}
    return [
        f"{module.path}:{found.line}: rlhf/algorithms must not import {found.target}"
        for module in modules.values()
        if module.name.startswith("rlhf.algorithms")
        for found in imports_of(module, modules)
        if found.target.partition(".")[0] not in allowed
        and found.target != "rlhf.algorithms"
        and not found.target.startswith("rlhf.algorithms.")
    ]


def cycles(modules: Modules) -> list[str]:
    """No module reaches itself through imports, local ones included: those only hide a cycle."""
    lines = {
        (name, found.target): found.line
        for name, module in modules.items()
        for found in imports_of(module, modules)
        if found.target in modules and found.target != name
    }
    graph: dict[str, set[str]] = {}
    for importer, imported in lines:
        graph.setdefault(importer, set()).add(imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        ring = error.args[1][:0:-1]
        start = ring.index(min(ring))
        path = [*ring[start:], *ring[: start + 1]]
        return [f"{modules[path[0]].path}:{lines[path[0], path[1]]}: import cycle {' -> '.join(path)}"]
    return []


def unexplained_local_imports(modules: Modules) -> list[str]:
    """An import inside a function says why, in a comment on its line or the one before."""
    return [
        f"{module.path}:{found.line}: import of {found.target} inside a function without a reason in a comment"
        for module in modules.values()
        for found in imports_of(module, modules)
        if found.is_local and not _has_reason(module, found.line)
    ]


def _has_reason(module: Module, line: int) -> bool:
    comment = " ".join(module.comments.get(number, "") for number in (line - 1, line))
    words = [word for word in comment.replace("#", " ").split() if not _is_directive(word)]
    return sum(map(str.isalpha, "".join(words))) >= REASON_LETTERS


def _is_directive(word: str) -> bool:
    return word.startswith(("noqa", "type:", "pyright:", "pragma")) or word.rstrip(",").isupper()


def strays(modules: Modules) -> list[str]:
    """A library with a home is imported nowhere else."""
    return [
        f"{module.path}:{found.line}: only {' and '.join(HOMES[library])} may import {library}"
        for module in modules.values()
        for found in imports_of(module, modules)
        if (library := found.target.partition(".")[0]) in HOMES and module.path not in HOMES[library]
    ]


def vague_names(modules: Modules) -> list[str]:
    """No file is named after nothing in particular."""
    return [
        f"{module.path}:1: name says nothing; name the concept it owns"
        for module in modules.values()
        if VAGUE_NAMES & set(module.name.split("."))
    ]


def heavy_packages(modules: Modules) -> list[str]:
    """A package's `__init__` imports no heavy library itself; what it reaches is checked by importing it."""
    return [
        f"{module.path}:{found.line}: a package's __init__ must not import {found.target}"
        for module in modules.values()
        if module.path.endswith("__init__.py")
        for found in imports_of(module, modules)
        if found.target.partition(".")[0] in HEAVY
    ]


RULES: list[Rule] = [
    wrong_directions,
    impure_algorithms,
    cycles,
    unexplained_local_imports,
    strays,
    vague_names,
    heavy_packages,
]


def project() -> Modules:
    paths = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
    return modules_of(*(Module(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) for path in paths))


PROJECT = project()
LIGHT = sorted(
    name
    for name, module in PROJECT.items()
    if module.path.endswith(("/__init__.py", "/config.py"))
    or name in ("rlhf.cli", "rlhf.config_loading.loader", "rlhf.stages")
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_project_keeps_the_rule(rule: Rule) -> None:
    violations = rule(PROJECT)
    assert not violations, "\n" + "\n".join(violations)


def test_the_rules_see_every_package() -> None:
    assert {module.package for module in PROJECT.values()} == set(MAY_IMPORT)
    assert any(found.target == "policies.config" for found in imports_of(PROJECT["rlhf.config.ppo"], PROJECT))


def reach_heavy(name: str, root: Path) -> list[str]:
    code = f"import sys, {name}; print(*(sorted({HEAVY!r} & set(sys.modules))))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.mark.parametrize("name", LIGHT)
def test_command_line_configs_and_packages_load_nothing_heavy(name: str) -> None:
    assert reach_heavy(name, ROOT) == []


def test_a_heavy_library_reached_through_another_module_is_found(tmp_path: Path) -> None:
    (tmp_path / "front.py").write_text("import behind\n", encoding="utf-8")
    (tmp_path / "behind.py").write_text("import json\n", encoding="utf-8")
    (tmp_path / "torch.py").touch()
    assert reach_heavy("front", tmp_path) == []
    (tmp_path / "behind.py").write_text("import torch\n", encoding="utf-8")
    assert reach_heavy("front", tmp_path) == ["torch"]


BROKEN: dict[str, tuple[Rule, dict[str, str], str]] = {
    "policies know nobody": (
        wrong_directions,
        {"policies/a.py": "x = 1\nimport rlhf.config\n"},
        "policies/a.py:2: policies must not import rlhf.config",
    ),
    "reward does not know rollout": (
        wrong_directions,
        {"reward/a.py": "from rollout.types import Prompt\n", "rollout/types.py": ""},
        "reward/a.py:1: reward must not import rollout.types",
    ),
    "rollout does not know reward": (
        wrong_directions,
        {"rollout/a.py": "from reward import model\n", "reward/model.py": ""},
        "rollout/a.py:1: rollout must not import reward.model",
    ),
    "rollout does not know rlhf, inside a function neither": (
        wrong_directions,
        {"rollout/a.py": "def f():\n    import rlhf\n"},
        "rollout/a.py:2: rollout must not import rlhf",
    ),
    "algorithms know no library but torch": (
        impure_algorithms,
        {"rlhf/algorithms/kl.py": "import math\nimport torch.nn\nimport numpy\n"},
        "rlhf/algorithms/kl.py:3: rlhf/algorithms must not import numpy",
    ),
    "algorithms know no other part of rlhf": (
        impure_algorithms,
        {"rlhf/algorithms/kl.py": "from . import masked\nfrom ..config import X\n", "rlhf/algorithms/masked.py": ""},
        "rlhf/algorithms/kl.py:2: rlhf/algorithms must not import rlhf.config",
    ),
    "no cycle of two": (
        cycles,
        {"rlhf/a.py": "\nimport rlhf.b\n", "rlhf/b.py": "from rlhf import a\n"},
        "rlhf/a.py:2: import cycle rlhf.a -> rlhf.b -> rlhf.a",
    ),
    "no cycle hidden in a function": (
        cycles,
        {
            "rlhf/a.py": "from rlhf.b import x\n",
            "rlhf/b.py": "from .c import y\n",
            "rlhf/c.py": "def f():\n    from rlhf.a import z\n",
        },
        "rlhf/a.py:1: import cycle rlhf.a -> rlhf.b -> rlhf.c -> rlhf.a",
    ),
    "a local import needs a reason": (
        unexplained_local_imports,
        {"rlhf/a.py": "def f():\n    import json\n"},
        "rlhf/a.py:2: import of json inside a function without a reason in a comment",
    ),
    "a directive is no reason": (
        unexplained_local_imports,
        {"rlhf/a.py": "class A:\n    async def f(self):\n        import json  # noqa: PLC0415\n"},
        "rlhf/a.py:3: import of json inside a function without a reason in a comment",
    ),
    "a comment two lines above is no reason": (
        unexplained_local_imports,
        {"rlhf/a.py": "def f():\n    # this is about the next statement\n    x = 1\n    import json\n"},
        "rlhf/a.py:4: import of json inside a function without a reason in a comment",
    ),
    "wandb has one home": (
        strays,
        {"rlhf/runtime/sinks/weights_and_biases.py": "import wandb\n", "rlhf/a.py": "from wandb.sdk import x\n"},
        "rlhf/a.py:1: only rlhf/runtime/sinks/weights_and_biases.py may import wandb",
    ),
    "each of trl's trainers has one home": (
        strays,
        {"rlhf/trainers/trl_dpo.py": "import trl\n", "rlhf/trainers/reward.py": "\nimport trl\n"},
        "rlhf/trainers/reward.py:2: only rlhf/trainers/trl_sft.py and rlhf/trainers/trl_dpo.py may import trl",
    ),
    "no utils": (vague_names, {"rlhf/runtime/utils.py": ""}, "rlhf/runtime/utils.py:1: name says nothing"),
    "no folder of helpers": (
        vague_names,
        {"policies/helpers/__init__.py": ""},
        "policies/helpers/__init__.py:1: name says nothing",
    ),
    "a package is light": (
        heavy_packages,
        {"policies/__init__.py": "import os\nfrom torch import nn\n"},
        "policies/__init__.py:2: a package's __init__ must not import torch",
    ),
}


@pytest.mark.parametrize(("rule", "files", "expected"), BROKEN.values(), ids=BROKEN)
def test_a_broken_rule_is_found_with_file_and_line(rule: Rule, files: dict[str, str], expected: str) -> None:
    (violation,) = rule(modules_of(*(Module(path, text) for path, text in files.items())))
    assert expected in violation


ALLOWED: dict[str, tuple[Rule, dict[str, str]]] = {
    "downwards": (
        wrong_directions,
        {
            "rlhf/a.py": "import rollout.types, reward.model, policies.causal\n",
            "reward/a.py": "import policies.causal\n",
        },
    ),
    "own modules and the standard library in algorithms": (
        impure_algorithms,
        {"rlhf/algorithms/kl.py": "import math\nimport torch\nfrom rlhf.algorithms.masked import mean\n"},
    ),
    "a diamond is no cycle": (
        cycles,
        {
            "rlhf/a.py": "import rlhf.b, rlhf.c\n",
            "rlhf/b.py": "import rlhf.d\n",
            "rlhf/c.py": "import rlhf.d\n",
            "rlhf/d.py": "",
        },
    ),
    "a reason on the line": (
        unexplained_local_imports,
        {"rlhf/a.py": "def f():\n    import ray  # noqa: PLC0415 - takes a second, only split placement needs it\n"},
    ),
    "a reason above": (
        unexplained_local_imports,
        {"rlhf/a.py": "def f():\n    # Only the split placement needs it.\n    import ray\n"},
    ),
    "an import under TYPE_CHECKING": (
        unexplained_local_imports,
        {"rlhf/a.py": "if TYPE_CHECKING:\n    import torch\n"},
    ),
}


@pytest.mark.parametrize(("rule", "files"), ALLOWED.values(), ids=ALLOWED)
def test_what_the_rules_allow_is_not_found(rule: Rule, files: dict[str, str]) -> None:
    assert rule(modules_of(*(Module(path, text) for path, text in files.items()))) == []
