"""The names of ``import rub``."""

import pkgutil

import rub


def test_no_folder_takes_the_name_of_a_function():
    # importing a submodule binds it in the package: `rub.audit` would turn into a module at its first use
    assert not set(rub.__all__) & {module.name for module in pkgutil.iter_modules(rub.__path__)}


def test_every_public_name_can_be_had():
    assert all(callable(getattr(rub, name)) for name in rub.__all__)
