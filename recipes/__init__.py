"""The recipes that ship with confreg, one file each."""
