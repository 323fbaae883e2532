"""Published networks: found in the cache without the network, fetched whole or not at all."""

import socket

import pytest

from deepcluster.cli import run_command
from deepcluster.errors import DeepClusterWarning, DiskError, ModelError, UsageError
from deepcluster.nets.published import PUBLISHED, cached, fetch, is_here
from tests.helpers.hub import keep, point_to, tiny_file


def test_the_names_are_timms_and_the_licences_are_permissive():
    import timm

    for published in PUBLISHED.values():
        for network in published.parts:
            config = timm.get_pretrained_cfg(network)
            assert config.hf_hub_id == f"timm/{network}" and config.hf_hub_filename is None
            assert published.licence.lower() == config.license == "apache-2.0"


def test_a_pair_is_here_where_both_are(hub_cache):
    first, second = PUBLISHED["photos-pair"].parts
    keep(hub_cache, first, tiny_file())
    assert is_here("photos-small") and not is_here("photos-pair")
    keep(hub_cache, second, tiny_file())
    assert is_here("photos-pair")


@pytest.mark.parametrize("link", [True, False])
def test_what_is_there_is_found_without_the_network(hub_cache, monkeypatch, link):
    path = keep(hub_cache, "photos", tiny_file(), link=link)

    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("photos", PUBLISHED["photos"].backbone, PUBLISHED["photos"].network):
        assert cached(name) == fetch(name) == path
    assert cached("photos-ssl") is None


def test_a_network_of_timm_that_has_no_name_of_ours(hub_cache):
    assert cached("timm:resnet18") is None
    with pytest.raises(UsageError, match="no weights"):
        fetch("timm:resnet18.no_such_tag")


def test_fetched_once(hub, hub_cache):
    seen = []
    path = fetch("photos-small", lambda *progress: seen.append(progress))
    assert path.read_bytes() == hub.content and path.is_relative_to(hub_cache)
    assert f"GET /timm/{PUBLISHED['photos-small'].network}/resolve/main/model.safetensors" in hub.requests
    assert all(phase == "weights" for phase, _, _ in seen)
    hub.requests.clear()
    assert fetch("photos-small") == cached("photos-small") == path and not hub.requests


def test_an_interrupted_download_goes_on(hub):
    hub.drops = 1
    assert fetch("photos").read_bytes() == hub.content
    assert sum(request.startswith("GET") for request in hub.requests) == 2


def test_what_a_killed_download_leaves_is_not_taken_for_the_file(hub, hub_cache):
    path = keep(hub_cache, "photos", hub.content)
    path.resolve().rename(path.resolve().with_suffix(".incomplete"))
    assert cached("photos") is None
    assert fetch("photos").read_bytes() == hub.content


@pytest.mark.parametrize("link", [True, False])
def test_a_damaged_file_is_seen_and_fetched_again(hub, hub_cache, link):
    path = keep(hub_cache, "photos", hub.content, link=link)
    path.resolve().write_bytes(hub.content[:-100])
    with pytest.warns(DeepClusterWarning, match="damaged.*deepcluster fetch photos repeats"):
        assert cached("photos") is None
    assert fetch("photos").read_bytes() == hub.content
    assert cached("photos") == path


def test_a_damaged_file_that_is_as_long_as_it_should_be(hub, hub_cache):
    path = keep(hub_cache, "photos", hub.content)
    path.resolve().write_bytes(hub.content[:-1] + b"?")
    with pytest.warns(DeepClusterWarning, match="SHA-256"):
        assert cached("photos") is None


def test_what_arrives_damaged_is_not_used(hub):
    hub.sent = hub.content[:-1] + b"?"
    with pytest.raises(ModelError, match="photos arrive damaged"):
        fetch("photos")
    with pytest.warns(DeepClusterWarning):
        assert cached("photos") is None
    hub.sent = hub.content
    assert fetch("photos").read_bytes() == hub.content


def test_offline_by_the_hubs_own_switch(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"photos are not on this machine, and HF_HUB_OFFLINE.*--weights FILE"):
        fetch("photos")
    assert not hub.requests


def test_without_a_connection(hub_cache, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        point_to(f"http://127.0.0.1:{unused.getsockname()[1]}", monkeypatch)
        with pytest.raises(ModelError, match=r"photos could not be fetched.*connection.*--weights FILE"):
            fetch("photos")
        unused.listen()  # connects, and never answers
        monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.2")
        with pytest.raises(ModelError, match=r"(?i)timed? ?out|no answer"):
            fetch("photos")


def test_a_cache_that_cannot_be_written(hub, hub_cache):
    hub_cache.write_text("a file in place of the folder")
    with pytest.raises(DiskError, match="set HF_HOME"):
        fetch("photos")


def test_a_name_that_is_none(ends):
    assert "choose photos, photos-ssl, photos-small, photos-pair or timm:NAME" in ends(["fetch", "fotos"], 2)


def test_the_command(hub, capsys):
    assert run_command(["fetch", "photos-small"]) == 0
    said = capsys.readouterr().out
    assert "EfficientNet-Lite0, 19 MB, Apache-2.0" in said and "model.safetensors" in said
    assert run_command(["fetch", "photos-small"]) == 0
    assert "on this machine already" in capsys.readouterr().out
    assert run_command(["doctor"]) == 0
    assert "photos-small" in capsys.readouterr().out
