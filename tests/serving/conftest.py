"""One server with a model of every task, for the tests that only ask."""

import pytest

from tests.serving.served import options, running, served_models


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    home = tmp_path_factory.mktemp("served")
    return {path.name: path for path in served_models(home)}


@pytest.fixture(scope="session")
def served(models):
    with running(options(*models.values())) as (client, server):
        yield client, server


@pytest.fixture
def client(served):
    return served[0]
