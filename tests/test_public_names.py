"""The public face of the three packages: every name resolves, and importing the packages costs nothing."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

PACKAGES = ("diffkit", "memorization", "ttsnap")
HEAVY = ("torch", "numpy", "PIL")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_resolves_and_is_listed(package: str) -> None:
    module = importlib.import_module(package)
    assert len(set(module.__all__)) == len(module.__all__) > 0
    for name in module.__all__:
        value = getattr(module, name)
        assert getattr(value, "__name__", name) == name  # one name for one thing
        assert name in dir(module)
        assert isinstance(value, str) or value.__doc__


@pytest.mark.parametrize("package", PACKAGES)
def test_an_unknown_attribute_is_an_attribute_error(package: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nonsense'"):
        importlib.import_module(package).nonsense  # noqa: B018


def test_importing_the_packages_imports_nothing_heavy() -> None:
    """In a fresh interpreter, and listing their names changes nothing."""
    program = (
        f"import sys, {', '.join(PACKAGES)}\n"
        f"names = [dir(package) for package in ({', '.join(PACKAGES)})]\n"
        f"assert 'load_pipeline' in names[0]\n"
        f"print(*(name for name in {HEAVY!r} if name in sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.split() == []


@pytest.mark.parametrize("package", PACKAGES)
def test_each_public_name_has_an_example(package: str) -> None:
    """It runs in test_doctests.py."""
    module = importlib.import_module(package)
    named = {name: getattr(module, name) for name in module.__all__ if name != "__version__"}
    assert [name for name, value in named.items() if ">>>" not in value.__doc__] == []
