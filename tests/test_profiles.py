"""Profiles: found, typed, overridden."""

import pytest

from confreg import ConfregError
from confreg.places import profiles


def test_those_that_ship_load():
    assert {"memory", "offload"} <= set(profiles.names())
    for name in profiles.names():
        assert profiles.load(name).name == name


def test_values_are_overridden():
    profile = profiles.load("offload", {"max_memory.cpu": "6GB", "dtype": "bfloat16"})
    assert profile.max_memory["cpu"] == 6_000_000_000
    assert profile.dtype == "bfloat16"


def test_a_user_s_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("CONFREG_PROFILES", str(tmp_path))
    (tmp_path / "memory.toml").write_text('kind = "local"\ndevice = "cpu"\n')
    assert profiles.load("memory").device == "cpu"
    assert profiles.load(tmp_path / "memory.toml").device == "cpu"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("kind = ", "is not valid TOML"),
        ('kind = "cloud"', "kind"),
        ('device = "cpu"', "kind"),
        ('kind = "local"\nsped = 3', "there is no setting 'sped'; there are"),
        ('kind = "local"\n[max_memory]\ncpu = "much"', "'max_memory.cpu'"),
        ('kind = "ndif"\nhost = "http://127.0.0.1:1"\ndeadline = -1', "'deadline'"),
    ],
)
def test_a_mistake_is_a_sentence(tmp_path, text, sentence):
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ConfregError, match="p") as caught:
        profiles.load(tmp_path / "p.toml")
    assert sentence in str(caught.value)


def test_an_unknown_profile_names_those_there_are():
    with pytest.raises(ConfregError, match=r"There is no profile 'moon'. There are: .*memory"):
        profiles.load("moon")
    with pytest.raises(ConfregError, match=r"no profile file 'no/such.toml'"):
        profiles.load("no/such.toml")
