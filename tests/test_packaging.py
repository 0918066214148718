from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {"plastibench": "plastibench", "plastibench.envs": "envs", "plastibench.agents": "agents"}


def module_name(path: Path) -> str:
    """The name under which a file is imported once it is installed."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "plastibench" else ("plastibench", *parts)
    return ".".join(parts).removesuffix(".__init__")


SOURCES = {
    module_name(path): ast.parse(path.read_text(encoding="utf-8"))
    for folder in FOLDERS.values()
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def imported(module: str) -> set[str]:
    """Everything that a module imports, wherever in it, as absolute names of modules and of what is taken from them."""
    found: set[str] = set()
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def below(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_the_packages_listed_are_those_that_exist() -> None:
    listed = PROJECT["tool"]["setuptools"]["packages"]
    found = [module_name(path) for folder in FOLDERS.values() for path in (ROOT / folder).rglob("__init__.py")]
    assert sorted(listed) == sorted(found)
    assert PROJECT["tool"]["setuptools"]["package-dir"] == FOLDERS


def test_every_folder_with_sources_is_a_package() -> None:
    for folder in FOLDERS.values():
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), path


@pytest.mark.parametrize("module", SOURCES)
def test_every_module_says_what_it_is(module: str) -> None:
    docstring = ast.get_docstring(SOURCES[module])
    assert docstring and docstring.splitlines()[0].endswith((".", "?", "!"))


def test_envs_and_agents_are_imported_through_plastibench_alone() -> None:
    tests = list((ROOT / "tests").rglob("*.py"))
    for name, tree in {**SOURCES, **{str(p): ast.parse(p.read_text(encoding="utf-8")) for p in tests}}.items():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not [n for n in names if n.split(".")[0] in ("envs", "agents")], name


def test_envs_and_agents_of_the_user_are_left_alone() -> None:
    import plastibench.agents
    import plastibench.envs

    for package in (plastibench.envs, plastibench.agents):
        assert Path(package.__file__).parent == ROOT / package.__name__.partition(".")[2]
    assert not {"envs", "agents"} & set(sys.modules)


NOTHING_ABOVE = {
    "plastibench.nn": (
        "plastibench.interventions",
        "plastibench.metrics",
        "plastibench.training.runner",
        "plastibench.cli",
        "plastibench.agents",
        "plastibench.envs",
        "plastibench.training.recorder",
        "plastibench.results.files",
        "plastibench.leaderboard",
    ),
    "plastibench.interventions": ("plastibench.agents", "plastibench.envs", "plastibench.metrics"),
    "plastibench.metrics": ("plastibench.agents", "plastibench.envs"),
    "plastibench.agents": ("plastibench.interventions", "plastibench.metrics"),
    "plastibench.envs": ("plastibench.interventions", "plastibench.metrics", "plastibench.agents"),
}
HARNESS = (
    "plastibench.training.runner",
    "plastibench.cli",
    "plastibench.cli",
    "plastibench.training.recorder",
    "plastibench.leaderboard",
)


@pytest.mark.parametrize("package", NOTHING_ABOVE)
def test_imports_go_one_way(package: str) -> None:
    modules = [module for module in SOURCES if below(module, package)]
    assert modules
    for module in modules:
        forbidden = [name for name in imported(module) if below(name, *NOTHING_ABOVE[package], *HARNESS)]
        # `from plastibench.config.registry import interventions` names the registry and not the package
        assert not forbidden, f"{module} imports {forbidden}"


def test_nothing_imports_the_integrations() -> None:
    for module in SOURCES:
        if not below(module, "plastibench.integrations"):
            assert not [name for name in imported(module) if below(name, "plastibench.integrations")], module


def test_the_integrations_need_no_harness() -> None:
    above = (*HARNESS, "plastibench.agents", "plastibench.envs", "plastibench.metrics")
    for module in SOURCES:
        if below(module, "plastibench.integrations", "plastibench.interventions.attach"):
            assert not [name for name in imported(module) if below(name, *above)], module


def test_the_spec_knows_no_torch() -> None:
    for module in (
        "plastibench.config.spec",
        "plastibench.config.options",
        "plastibench.config.registry",
        "plastibench.config.errors",
    ):
        assert not [name for name in imported(module) if below(name, "torch", "tensordict", "gymnasium")]


def test_third_party_imports_are_declared_dependencies() -> None:
    declared = {requirement.split(">")[0].split("[")[0] for requirement in PROJECT["project"]["dependencies"]}
    optional = {
        r.split(">")[0].split("[")[0] for rs in PROJECT["project"]["optional-dependencies"].values() for r in rs
    }
    names = {"scikit-learn": "sklearn", "pillow": "PIL", "tomli-w": "tomli_w"}
    allowed = {names.get(requirement, requirement) for requirement in declared | optional} | {"plastibench"}
    for module in SOURCES:
        roots = {name.split(".")[0] for name in imported(module)}
        assert roots - set(sys.stdlib_module_names) - {"tomllib"} <= allowed, module  # of Python 3.11


def test_the_command_points_to_the_main_function() -> None:
    import plastibench
    from plastibench.cli.main import main

    assert PROJECT["project"]["scripts"] == {"plastibench": "plastibench.cli.main:main"}
    assert callable(main)
    assert PROJECT["project"]["version"] == plastibench.__version__
    assert (ROOT / "plastibench" / "py.typed").is_file()
