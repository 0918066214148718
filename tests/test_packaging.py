from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


# What each package may import. Every edge points down this list, so there is no cycle.
ALLOWED: dict[str, set[str]] = {
    "config": set(),
    "utils": {"config"},
    "nn": {"config", "utils"},
    "envs": {"config", "utils"},
    "interventions": {"config", "utils", "nn"},
    "metrics": {"config", "utils", "nn"},
    "agents": {"config", "utils", "nn", "envs"},
    "results": {"config", "utils"},
    "integrations": {"config", "utils", "nn", "interventions", "metrics"},
    "training": {"config", "utils", "nn", "envs", "interventions", "metrics", "agents", "results"},
    "leaderboard": {"config", "utils", "results"},
    "plotting": {"config", "utils", "nn", "metrics", "results", "training", "leaderboard"},
    "diagnosis": {"config", "utils", "nn", "envs", "interventions", "metrics", "training"},
    "sweeps": {"config", "utils", "envs", "agents", "results", "training", "leaderboard"},
    "cli": {
        *("config", "utils", "envs", "interventions", "metrics", "results", "training", "leaderboard", "plotting"),
        *("diagnosis", "sweeps"),
    },
}


def package_of(module: str) -> str:
    """The package below ``plastibench``; empty for ``plastibench`` itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def module_edges() -> dict[str, set[str]]:
    """The modules of ours that each module imports, also for type checking only."""
    edges: dict[str, set[str]] = {}
    for module in SOURCES:
        targets = {name for name in imported(module) if name in SOURCES}
        # `from package import module` names both; the package itself is meant only if a name of its own is taken
        edges[module] = {t for t in targets if not any(other.startswith(f"{t}.") for other in targets)} - {module}
    return edges


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_what_is_below_them(package: str) -> None:
    found = {
        package_of(target)
        for module, targets in module_edges().items()
        for target in targets
        if package_of(module) == package and package_of(target) not in ("", package)
    }
    assert found <= ALLOWED[package], f"{package} imports {sorted(found - ALLOWED[package])}"


def test_every_package_has_its_allowed_imports() -> None:
    assert set(ALLOWED) == {package_of(module) for module in SOURCES} - {"", "__main__"}


def test_packages_have_at_most_nine_levels() -> None:
    levels: dict[str, int] = {}
    for package, below_it in ALLOWED.items():  # in order: a package comes after everything that it may import
        levels[package] = 1 + max((levels[other] for other in below_it), default=0)
    assert max(levels.values()) <= 9


def test_no_modules_import_each_other_in_a_circle() -> None:
    edges, done = module_edges(), set[str]()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for target in sorted(edges[module]):
                visit(target, (*path, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_no_two_modules_share_a_name() -> None:
    names = [module.rpartition(".")[2] for module in SOURCES if package_of(module) != "cli"]
    assert sorted(names) == sorted(set(names))


def test_few_packages_and_no_loose_modules() -> None:
    entries = [path for path in (ROOT / "plastibench").iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert len(entries) + 2 <= 15, "with __init__.py and __main__.py"
    assert {path.name for path in (ROOT / "plastibench").glob("*.py")} == {"__init__.py", "__main__.py"}


def test_only_envs_and_agents_are_found_beside_the_package() -> None:
    for name in ("plastibench", "tests", "runs", "docs"):
        assert importlib.util.find_spec(f"plastibench.{name}") is None


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
    names = {"scikit-learn": "sklearn", "pillow": "PIL", "ipykernel": "IPython"}
    allowed = {names.get(name, name.replace("-", "_")) for name in declared | optional} | {"plastibench"}
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


def test_the_lock_satisfies_the_project_here() -> None:
    """After a change of the dependencies, refresh it as CONTRIBUTING.md says."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text and "file:" not in text and "--index" not in text  # the address of a registry, a path
    blocks = [block.replace("\\\n", " ").split("--hash=") for block in re.split(r"\n(?=\w)", text.strip())]
    assert all(len(hashes) >= 1 and all(each.startswith("sha256:") for each in hashes) for _, *hashes in blocks)
    pinned = [Requirement(head.strip()) for head, *_ in blocks]
    here = {canonicalize_name(each.name): each for each in pinned if each.marker is None or each.marker.evaluate()}
    project = PROJECT["project"]
    wanted, extras = [Requirement(each) for each in project["dependencies"]], ["dev", "docs"]
    for extra in extras:
        for each in map(Requirement, project["optional-dependencies"][extra]):
            extras.extend(each.extras if each.name == "plastibench" else ())
            wanted.extend([each] if each.name != "plastibench" else ())
    for each in wanted:
        if each.marker is None or each.marker.evaluate():
            (version,) = here[canonicalize_name(each.name)].specifier
            assert each.specifier.contains(version.version), f"{each} is not satisfied by {version}"
