import pytest

from tests.made import Task, Trained, binary_task, shared_directory, trained_run


@pytest.fixture(scope="session")
def task(tmp_path_factory) -> Task:
    return binary_task(shared_directory(tmp_path_factory))


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Trained:
    return trained_run(shared_directory(tmp_path_factory))
