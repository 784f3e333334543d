"""The fixtures: each test has a model and a server of its own."""

import pytest
from rig import PROFILES, Model, Server, command_of, leftovers


def pytest_configure(config):
    config.addinivalue_line("markers", "defaults(**keys): keys of [defaults] for the server")


@pytest.fixture
def model():
    model = Model()
    yield model
    model.stop()


@pytest.fixture
def server(tmp_path, model, request):
    """A running server. At the end it must stop with code 0 and leave no process behind."""
    marker = request.node.get_closest_marker("defaults")
    server = Server(tmp_path, model, PROFILES, **(marker.kwargs if marker else {}))
    try:
        server.start()
        yield server
        model.release()
        if server.is_running():
            assert server.stop() == 0, "exit code after SIGTERM"
        left = {pid: command_of(pid) for pid in leftovers(server.mark)}
        assert not left, "processes that outlived the server"
    finally:
        server.end()
        print(f"---- the server's log, its end ----\n{server.log_tail()}")
