"""The profiles that ship with confreg: where a recipe runs, one TOML file each."""
