import pytest

from volgate.errors import InvalidRequest
from volgate.settings import load


def test_defaults_serve_a_directory_pool_below_the_state_directory(tmp_path):
    settings = load(None, tmp_path)
    assert settings.pools == {"default": {"kind": "directory", "path": str(tmp_path / "pools" / "default")}}
    assert settings.socket_path == tmp_path / "volgate.sock"
    assert next(iter(settings.hosts.values())).uri == "qemu:///system"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[serverr]\n", "did you mean 'server'"),
        ('[server]\nstate_dri = "/x"\n', "did you mean 'state_dir'"),
        ("[limits]\noperation_threads = 'many'\n", "operation_threads"),
        ('[hosts.a]\nurl = "qemu:///system"\n', "did you mean 'uri'"),
        ("not toml", "configuration"),
    ],
)
def test_a_wrong_key_or_type_is_named(tmp_path, text, says):
    path = tmp_path / "volgate.toml"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=says):
        load(path)
