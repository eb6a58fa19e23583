"""A server's settings: the command line before the environment before the defaults, and nothing absurd."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from wardian.app.parts import pool_limits
from wardian.config import PORT, BadSetting, Settings

DATA = Path("/nowhere")


def test_defaults_listen_on_loopback() -> None:
    settings = Settings.load({}, data_dir=DATA)
    assert (settings.host, settings.port, settings.domain) == ("127.0.0.1", PORT, None)


def test_what_is_given_goes_before_the_environment() -> None:
    env = {"WARDIAN_PORT": "1", "WARDIAN_HOST": "0.0.0.0", "WARDIAN_POOL_HOT": "7", "WARDIAN_DOMAIN": ""}
    settings = Settings.load(env, data_dir=DATA, port=2, host=None)
    assert (settings.port, settings.host, settings.pool_hot, settings.domain) == (2, "0.0.0.0", 7, None)


def test_networks_are_listed_with_commas() -> None:
    settings = Settings.load({"WARDIAN_ALLOWED_NETWORKS": "10.1.0.0/16, fd00::/8"}, data_dir=DATA)
    assert settings.allowed_networks == (ip_network("10.1.0.0/16"), ip_network("fd00::/8"))


def test_registries_are_listed_with_commas() -> None:
    env = {"WARDIAN_PRIVATE_REGISTRIES": "127.0.0.1:5000, Registry.LAN"}
    assert Settings.load(env, data_dir=DATA).private_registries == ("127.0.0.1:5000", "registry.lan:443")


def test_templates_of_the_house_may_be_kept_hot_in_other_numbers() -> None:
    settings = Settings.load({"WARDIAN_POOL_HOT_OF": "desktop=0, code-interpreter-v1=4"}, data_dir=DATA)
    assert settings.pool_hot_of == {"desktop": 0, "code-interpreter-v1": 4}


@pytest.mark.parametrize(
    "env",
    [
        {"WARDIAN_PORT": "many"},
        {"WARDIAN_PORT": "65536"},
        {"WARDIAN_POOL_HOT": "-1"},
        {"WARDIAN_POOL_HOT_OF": "desktop"},
        {"WARDIAN_POOL_HOT_OF": "desktop=-1"},
        {"WARDIAN_TIMEOUT_MAX_HOURS": "0"},
        {"WARDIAN_SNAPSHOTS_COMPRESS_AFTER_S": "59"},
        {"WARDIAN_SNAPSHOTS_COMPRESS_AFTER_S": "-1"},
        {"WARDIAN_ALLOWED_NETWORKS": "10.0.0.1/8"},
        {"WARDIAN_PRIVATE_REGISTRIES": "https://x"},
    ],
)
def test_absurd_settings_are_refused_by_name(env: dict[str, str]) -> None:
    (name,) = env
    with pytest.raises(BadSetting, match=f"(?i){name.removeprefix('WARDIAN_')}"):
        Settings.load(env, data_dir=DATA)


def test_no_pool_means_none_even_under_demand() -> None:
    limits = pool_limits(Settings(DATA, pool_hot=0, pool_created=0))
    assert (limits.hot.high, limits.created.high) == (0, 0)
    assert pool_limits(Settings(DATA)).hot.high > pool_limits(Settings(DATA)).hot.low
